// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {BlockFlow} from "../src/BlockFlow.sol";
import {RewardToken} from "../src/RewardToken.sol";
import {VM} from "./Vm.sol";

/// @title Experiment
/// @notice What the tests of BlockFlow share: agents with keys, in the order of their accounts, and what they sign.
/// @dev Hashes and overall scores are computed here anew, from EIP-712's text and from the paper's algorithm 1 as it is
///      written.
abstract contract Experiment {
    uint256 internal constant ONE = 65_535;
    uint96 internal constant BOND = 100e18;
    uint96 internal constant STAKE = 30e18;
    uint32 internal constant ROUNDS = 3;
    uint32 internal constant STAGE_SECONDS = 600;
    bytes32 internal constant SALT = keccak256("salt");

    address internal immutable RELAY = VM.addr(0x4e1a7);

    RewardToken internal token = new RewardToken(1e30);
    BlockFlow internal flow;

    /// @dev The agents' keys, in the order of their accounts.
    uint256[] internal keys;

    // --- the experiment ---

    function _terms(uint256 n) internal pure returns (BlockFlow.Terms memory terms) {
        // forge-lint: disable-next-line(unsafe-typecast)
        terms = BlockFlow.Terms("plan", ROUNDS, uint8(n), BOND, STAKE, [STAGE_SECONDS, 600, 600, 600, 600, 600]);
    }

    function _deploy(uint256 n) internal {
        _deploy(n, _terms(n), token);
    }

    function _deploy(uint256 n, BlockFlow.Terms memory terms, IERC20 token_) internal {
        _makeKeys(n);
        address[] memory accounts = new address[](n);
        for (uint256 i; i < n; ++i) {
            accounts[i] = VM.addr(keys[i]);
        }
        flow = new BlockFlow(token_, terms, accounts);
    }

    /// @dev The bonds of all, and the first round open.
    function _begin(uint256 n) internal {
        _deploy(n);
        _fund(n);
        flow.join(_entries(n));
    }

    function _fund(uint256 n) internal {
        for (uint256 i; i < n; ++i) {
            require(token.transfer(_account(i), BOND));
        }
    }

    function _account(uint256 agent) internal view returns (address) {
        return VM.addr(keys[agent]);
    }

    /// @dev Insertion keeps them sorted by account.
    function _makeKeys(uint256 n) private {
        delete keys;
        address[] memory accounts = new address[](n);
        for (uint256 i; i < n; ++i) {
            keys.push(0);
            address account = VM.addr(1e6 + i);
            uint256 j = i;
            for (; j > 0 && accounts[j - 1] > account; --j) {
                (accounts[j], keys[j]) = (accounts[j - 1], keys[j - 1]);
            }
            (accounts[j], keys[j]) = (account, 1e6 + i);
        }
    }

    function _warpPast() internal {
        VM.warp(_deadline());
    }

    function _deadline() internal view returns (uint40 deadline) {
        (, deadline,,) = flow.progress();
    }

    function _stage() internal view returns (BlockFlow.Stage stage) {
        (stage,,,) = flow.progress();
    }

    function _live() internal view returns (uint256 live) {
        (,, live,) = flow.progress();
    }

    function _acted() internal view returns (uint256 acted) {
        (,,, acted) = flow.progress();
    }

    function _refund(uint256 agent) internal view returns (uint96 refund) {
        (, refund) = flow.agents(agent);
    }

    function _assertStage(BlockFlow.Stage stage) internal view {
        VM.assertEq(uint256(_stage()), uint256(stage), "stage");
    }

    // --- what agents sign ---

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("flower-chain"),
                keccak256("1"),
                block.chainid,
                address(flow)
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _entry(uint256 agent, uint256 value) internal view returns (BlockFlow.Entry memory) {
        address account = _account(agent);
        uint256 deadline = type(uint256).max;
        bytes32 permit = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                account,
                address(flow),
                value,
                token.nonces(account),
                deadline
            )
        );
        (uint8 v, bytes32 r, bytes32 s) =
            VM.sign(keys[agent], keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), permit)));
        // forge-lint: disable-next-line(unsafe-typecast)
        return BlockFlow.Entry(uint8(agent), deadline, v, r, s);
    }

    function _entries(uint256 n) internal view returns (BlockFlow.Entry[] memory batch) {
        batch = new BlockFlow.Entry[](n);
        for (uint256 i; i < n; ++i) {
            batch[i] = _entry(i, BOND);
        }
    }

    function _contribution(uint256 agent) internal view returns (BlockFlow.SignedContribution memory) {
        bytes32 digest = _random("model", agent);
        bytes memory cid = abi.encodePacked(bytes4(0x01551220), _random("sealed", agent));
        bytes32 hash = keccak256(
            abi.encode(
                keccak256("Contribution(uint32 round,bytes32 digest,bytes cid)"), flow.round(), digest, keccak256(cid)
            )
        );
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return BlockFlow.SignedContribution(uint8(agent), digest, cid, r, vs);
    }

    function _contributions(uint256 set) internal view returns (BlockFlow.SignedContribution[] memory batch) {
        batch = new BlockFlow.SignedContribution[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _contribution(i);
        }
    }

    function _retrieval(uint256 agent, uint256 retrieved) internal view returns (BlockFlow.SignedRetrieval memory) {
        bytes32 hash =
            keccak256(abi.encode(keccak256("Retrieval(uint32 round,uint256 retrieved)"), flow.round(), retrieved));
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return BlockFlow.SignedRetrieval(uint8(agent), retrieved, r, vs);
    }

    /// @dev The agents in `set` say that they retrieved `retrieved`.
    function _retrievals(uint256 set, uint256 retrieved)
        internal
        view
        returns (BlockFlow.SignedRetrieval[] memory batch)
    {
        batch = new BlockFlow.SignedRetrieval[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _retrieval(i, retrieved);
        }
    }

    function _commitment(uint256 agent, bytes memory row) internal view returns (bytes32) {
        return _digest(
            keccak256(
                abi.encode(
                    keccak256("Scores(uint32 round,uint8 agent,bytes row,bytes32 salt)"),
                    flow.round(),
                    agent,
                    keccak256(row),
                    SALT
                )
            )
        );
    }

    function _signedCommitment(uint256 agent, bytes32 commitment)
        internal
        view
        returns (BlockFlow.SignedCommitment memory)
    {
        bytes32 hash = keccak256(
            abi.encode(keccak256("Commitment(uint32 round,bytes32 commitment)"), flow.round(), commitment)
        );
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return BlockFlow.SignedCommitment(uint8(agent), commitment, r, vs);
    }

    /// @dev The agents in `set` commit to their rows of `scores`.
    function _commitments(uint256 set, uint256[][] memory scores)
        internal
        view
        returns (BlockFlow.SignedCommitment[] memory batch)
    {
        batch = new BlockFlow.SignedCommitment[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _signedCommitment(i, _commitment(i, _row(scores[i])));
        }
    }

    function _opening(uint256 agent, uint256[] memory row) internal pure returns (BlockFlow.Opening memory) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return BlockFlow.Opening(uint8(agent), _row(row), SALT);
    }

    function _openings(uint256 set, uint256[][] memory scores)
        internal
        view
        returns (BlockFlow.Opening[] memory batch)
    {
        batch = new BlockFlow.Opening[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _opening(i, scores[i]);
        }
    }

    // --- whole stages ---

    function _submitAll() internal {
        flow.submit(_contributions(_live()));
    }

    function _retrieveAll() internal {
        flow.retrieve(_retrievals(_live(), _live()));
    }

    function _commitAll(uint256[][] memory scores) internal {
        flow.commit(_commitments(_live(), scores));
    }

    function _scoreAll(uint256[][] memory scores) internal {
        uint256 live = _live();
        (bytes memory lower, bytes memory upper) = _middles(scores, live);
        flow.score(_rows(scores, live), _salts(_count(live)), lower, upper);
    }

    function _playRound(uint256[][] memory scores) internal {
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        _scoreAll(scores);
    }

    // --- scores ---

    /// @dev Different models, and auditors who differ a little, as honest ones do.
    function _honestScores(uint256 n) internal pure returns (uint256[][] memory scores) {
        scores = new uint256[][](n);
        for (uint256 a; a < n; ++a) {
            scores[a] = new uint256[](n);
            for (uint256 k; k < n; ++k) {
                scores[a][k] =
                    45_000 + uint256(_random("quality", k)) % 15_000 + uint256(_random("luck", a * n + k)) % 3000;
            }
        }
    }

    function _row(uint256[] memory scores) internal pure returns (bytes memory row) {
        row = new bytes(2 * scores.length);
        for (uint256 k; k < scores.length; ++k) {
            row[2 * k] = bytes1(uint8(scores[k] >> 8));
            // forge-lint: disable-next-line(unsafe-typecast)
            row[2 * k + 1] = bytes1(uint8(scores[k]));
        }
    }

    /// @dev The rows of the agents in `live`, one after another.
    function _rows(uint256[][] memory scores, uint256 live) internal pure returns (bytes memory rows) {
        uint256 n = scores.length;
        uint256[] memory flat = new uint256[](_count(live) * n);
        for ((uint256 a, uint256 filled) = (0, 0); a < n; ++a) {
            for (uint256 k; k < n && _has(live, a); ++k) {
                flat[filled++] = scores[a][k];
            }
        }
        return _row(flat);
    }

    function _salts(uint256 n) internal pure returns (bytes32[] memory salts) {
        salts = new bytes32[](n);
        for (uint256 i; i < n; ++i) {
            salts[i] = SALT;
        }
    }

    function _middles(uint256[][] memory scores, uint256 live)
        internal
        pure
        returns (bytes memory lower, bytes memory upper)
    {
        uint256 n = scores.length;
        uint256 auditors = _count(live);
        uint256[] memory low = new uint256[](n);
        uint256[] memory high = new uint256[](n);
        for (uint256 k; k < n; ++k) {
            uint256[] memory column = _sortedColumn(scores, live, k);
            low[k] = column[(auditors - 1) / 2];
            high[k] = column[auditors / 2];
        }
        return (_row(low), _row(high));
    }

    function _sortedColumn(uint256[][] memory scores, uint256 live, uint256 k)
        internal
        pure
        returns (uint256[] memory column)
    {
        column = new uint256[](_count(live));
        uint256 filled = 0;
        for (uint256 a; a < scores.length; ++a) {
            if (!_has(live, a)) continue;
            uint256 j = filled++;
            for (; j > 0 && column[j - 1] > scores[a][k]; --j) {
                column[j] = column[j - 1];
            }
            column[j] = scores[a][k];
        }
    }

    /// @dev The paper's algorithm 1, line by line; zero for those that are not in `live`.
    function _algorithm1(uint256[][] memory scores, uint256 live) internal pure returns (uint256[] memory p) {
        uint256 n = scores.length;
        uint256[] memory m = new uint256[](n);
        uint256[] memory d = new uint256[](n);
        p = new uint256[](n);
        uint256 bestModel = 0;
        uint256 bestAudit = 0;
        for (uint256 k; k < n; ++k) {
            if (!_has(live, k)) continue;
            uint256[] memory column = _sortedColumn(scores, live, k);
            m[k] = (column[(column.length - 1) / 2] + column[column.length / 2]) / 2;
            if (m[k] > bestModel) bestModel = m[k];
        }
        for (uint256 a; a < n; ++a) {
            if (!_has(live, a)) continue;
            d[a] = type(uint256).max;
            for (uint256 k; k < n; ++k) {
                if (!_has(live, k)) continue;
                uint256 t = scores[a][k] > m[k] ? scores[a][k] - m[k] : m[k] - scores[a][k];
                uint256 quality = 2 * t < ONE ? ONE * (ONE - 2 * t) / (ONE + 2 * t) : 0;
                if (quality < d[a]) d[a] = quality;
            }
            if (d[a] > bestAudit) bestAudit = d[a];
        }
        if (bestModel == 0 || bestAudit == 0) return p;
        for (uint256 k; k < n; ++k) {
            uint256 model = m[k] * ONE / bestModel;
            uint256 audit = d[k] * ONE / bestAudit;
            p[k] = model < audit ? model : audit;
        }
    }

    // --- sets ---

    function _all(uint256 n) internal pure returns (uint256) {
        return (uint256(1) << n) - 1;
    }

    function _set(uint256 agent) internal pure returns (uint256) {
        return uint256(1) << agent;
    }

    function _has(uint256 set, uint256 agent) internal pure returns (bool) {
        return set >> agent & 1 == 1;
    }

    function _count(uint256 set) internal pure returns (uint256 count) {
        for (; set != 0; set &= set - 1) {
            ++count;
        }
    }

    function _random(string memory what, uint256 i) internal pure returns (bytes32) {
        return keccak256(abi.encode(what, i));
    }
}
