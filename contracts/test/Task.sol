// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {BlockFlow} from "../src/BlockFlow.sol";
import {DataTrust} from "../src/DataTrust.sol";
import {Experiment} from "./Experiment.sol";
import {VM} from "./Vm.sol";

/// @title Task
/// @notice What the tests of DataTrust share: an experiment in which nobody scores itself, with a reward.
/// @dev What `DataTrust` has in common with `BlockFlow` has the same names, so that `flow` is either.
abstract contract Task is Experiment {
    uint96 internal constant REWARD = 900e18 + 2;
    uint8 internal constant PLACES = 3;
    uint16 internal constant TOLERANCE = 4000;
    uint16 internal constant FLOOR = 30_000;
    uint8 internal constant PATIENCE = 2;
    uint16 internal constant CONSISTENCY = 6553;

    DataTrust internal trust;

    function _taskTerms(uint256 n) internal pure returns (DataTrust.Terms memory) {
        return DataTrust.Terms({
            digest: "plan",
            model: "model",
            cid: abi.encodePacked(bytes4(0x01551220), keccak256("model")),
            rounds: ROUNDS,
            // forge-lint: disable-next-line(unsafe-typecast)
            quorum: uint8(n),
            bond: BOND,
            reward: REWARD,
            places: PLACES,
            consistency: CONSISTENCY,
            tolerance: TOLERANCE,
            floor: FLOOR,
            patience: PATIENCE,
            seconds_: [STAGE_SECONDS, 600, 600, 600, 600, 600]
        });
    }

    function _deployTask(uint256 n, DataTrust.Terms memory terms, IERC20 token_) internal {
        _makeKeys(n);
        address[] memory accounts = new address[](n);
        for (uint256 i; i < n; ++i) {
            accounts[i] = _account(i);
        }
        trust = new DataTrust(token_, terms, accounts);
        flow = BlockFlow(address(trust));
    }

    /// @dev The reward and all deposits are there, and the first round is open.
    function _beginTask(uint256 n, DataTrust.Terms memory terms) internal {
        _deployTask(n, terms, token);
        require(token.transfer(address(trust), terms.reward));
        _fund(n);
        trust.join(_entries(n));
    }

    function _beginTask(uint256 n) internal {
        _beginTask(n, _taskTerms(n));
    }

    function _leave(uint256 agent) internal view returns (DataTrust.SignedLeave memory) {
        bytes32 hash = keccak256(abi.encode(keccak256("Leave(uint32 round)"), trust.round()));
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return DataTrust.SignedLeave(uint8(agent), r, vs);
    }

    function _leaves(uint256 set) internal view returns (DataTrust.SignedLeave[] memory batch) {
        batch = new DataTrust.SignedLeave[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _leave(i);
        }
    }

    /// @dev Of what a worker thinks of all models, what it says: those of the others, from the next one on.
    function _said(uint256[][] memory scores, uint256 agent) internal pure override returns (uint256[] memory said) {
        said = new uint256[](scores.length - 1);
        for (uint256 i; i < said.length; ++i) {
            said[i] = scores[agent][(agent + 1 + i) % scores.length];
        }
    }

    /// @dev All others.
    function _auditors(uint256 agent, uint256 live) internal pure override returns (uint256) {
        return live & ~_set(agent);
    }

    /// @dev Worker k's model is worth `qualities[k]` to all, and `spread` more to those with an odd number.
    function _agreed(uint256[] memory qualities, uint256 spread) internal pure returns (uint256[][] memory scores) {
        scores = new uint256[][](qualities.length);
        for (uint256 a; a < qualities.length; ++a) {
            scores[a] = new uint256[](qualities.length);
            for (uint256 k; k < qualities.length; ++k) {
                scores[a][k] = qualities[k] + a % 2 * spread;
            }
        }
    }

    /// @dev The first is the best, and each is a little worse than the one before; all agree.
    function _falling(uint256 n) internal pure returns (uint256[][] memory) {
        uint256[] memory qualities = new uint256[](n);
        for (uint256 k; k < n; ++k) {
            qualities[k] = 60_000 - 100 * k;
        }
        return _agreed(qualities, 0);
    }

    /// @dev Everybody's money leaves, and nothing stays.
    function _payOut() internal {
        uint256[] memory who = new uint256[](keys.length);
        for (uint256 i; i < who.length; ++i) {
            who[i] = i;
        }
        trust.claim(who);
        trust.sweep();
        VM.assertEq(trust.held(), 0, "held");
        for (uint256 i; i < who.length; ++i) {
            if (trust.credits(_account(i)) != 0) trust.withdraw(_account(i));
        }
        if (trust.credits(address(this)) != 0) trust.withdraw(address(this));
        VM.assertEq(token.balanceOf(address(trust)), 0, "nothing is locked");
    }
}
