// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {DataTrust} from "../src/DataTrust.sol";
import {Peers} from "../src/Peers.sol";
import {Task} from "./Task.sol";
import {VM} from "./Vm.sol";

/// @notice What DataTrust costs in gas per worker. See the tables with `forge test -vv --match-contract DataTrustGas`.
/// @dev Isolated: every call from a test is a transaction of its own, with 21,000 gas, its calldata, cold storage and
///      refunds included. `score` also ranks and pays. The round is the second: what is written once is there.
contract DataTrustGasTest is Task {
    uint256 internal constant TX_GAS_CAP = 16_777_216;

    string internal constant HEADING =
        "workers join    submit  retrieve  commit  reveal  score   whole round  depart  claim";

    event log(string line);

    /// forge-config: default.isolate = true
    function test_GasRelayed() public {
        emit log("relayed, gas per worker");
        emit log(HEADING);
        uint256[4] memory sizes = [uint256(3), 5, 10, 25];
        for (uint256 i; i < sizes.length; ++i) {
            _measure(sizes[i], sizes[i]);
        }
    }

    /// forge-config: default.isolate = true
    function test_GasOfTheMostWorkers() public {
        emit log("relayed, gas per worker");
        emit log(HEADING);
        _measure(104, 52);
    }

    /// forge-config: default.isolate = true
    function test_GasOfOwnTransactions() public {
        emit log("by own transactions, gas per worker");
        emit log(HEADING);
        uint256[4] memory sizes = [uint256(3), 5, 10, 25];
        for (uint256 i; i < sizes.length; ++i) {
            _measure(sizes[i], 1);
        }
    }

    /// @dev With `step` workers in a transaction. If each sends its own, it signs nothing, and reveals by itself.
    function _measure(uint256 n, uint256 step) internal {
        uint256[][] memory scores = _falling(n);
        DataTrust.Terms memory terms = _taskTerms(n);
        _deployTask(n, terms, token);
        require(token.transfer(address(trust), terms.reward));
        _fund(n);
        uint256[8] memory gas;
        for (uint256 i; i < n; i += step) {
            trust.join(_part(i, step));
            gas[0] += _last();
        }
        _playRound(scores);
        for (uint256 stage = 1; stage < 5; ++stage) {
            if (stage == 4 && step != 1) continue;
            for (uint256 i; i < n; i += step) {
                _do(stage, (_all(step) << i) & _all(n), scores, step == 1);
                gas[stage] += _last();
            }
        }
        trust.depart(_leaves(_all(n)));
        gas[6] = _last();
        _scoreAll(scores);
        gas[5] = _last();
        uint256[] memory who = new uint256[](n);
        for (uint256 i; i < n; ++i) {
            who[i] = i;
        }
        trust.claim(who);
        gas[7] = _last();
        _report(gas, n);
    }

    function _part(uint256 from, uint256 step) internal view returns (Peers.Entry[] memory part) {
        part = new Peers.Entry[](from + step > keys.length ? keys.length - from : step);
        for (uint256 i; i < part.length; ++i) {
            part[i] = _entry(from + i, BOND);
        }
    }

    function _do(uint256 stage, uint256 set, uint256[][] memory scores, bool own) internal {
        uint256 first = 0;
        while (!_has(set, first)) ++first;
        if (stage == 1) {
            Peers.SignedContribution[] memory batch = _contributions(set);
            if (own) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(first));
            trust.submit(batch);
        } else if (stage == 2) {
            Peers.SignedRetrieval[] memory batch = _retrievals(set, _live());
            if (own) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(first));
            trust.retrieve(batch);
        } else if (stage == 3) {
            Peers.SignedCommitment[] memory batch = _commitments(set, scores);
            if (own) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(first));
            trust.commit(batch);
        } else {
            trust.reveal(_openings(set, scores));
        }
    }

    function _report(uint256[8] memory gas, uint256 n) internal {
        uint256 round = gas[1] + gas[2] + gas[3] + gas[4] + gas[5];
        string memory line = string.concat(_cell(n), _cell(gas[0] / n), _cell(gas[1] / n), _cell(gas[2] / n), "  ");
        line = string.concat(line, _cell(gas[3] / n), _cell(gas[4] / n), _cell(gas[5] / n), _cell(round / n), "     ");
        emit log(string.concat(line, _cell(gas[6] / n), _cell(gas[7] / n)));
        VM.assertLe(round / n, 220_000, "whole round");
    }

    function _last() internal view returns (uint256 gas) {
        gas = VM.lastCallGas().gasTotalUsed;
        VM.assertLe(gas, TX_GAS_CAP, "one transaction");
    }

    function _cell(uint256 value) internal pure returns (string memory text) {
        text = VM.toString(value);
        while (bytes(text).length < 8) {
            text = string.concat(text, " ");
        }
    }
}
