// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {BlockFlow} from "../src/BlockFlow.sol";
import {Peers} from "../src/Peers.sol";
import {RewardToken} from "../src/RewardToken.sol";
import {VM, Vm} from "./Vm.sol";

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

    /// @dev By how many each model is audited; zero if by all.
    uint256 internal auditors;

    /// @dev The agents' keys, in the order of their accounts.
    uint256[] internal keys;

    // --- the experiment ---

    function _terms(uint256 n) internal pure returns (BlockFlow.Terms memory terms) {
        // forge-lint: disable-next-line(unsafe-typecast)
        terms = BlockFlow.Terms("plan", ROUNDS, uint8(n), BOND, STAKE, [STAGE_SECONDS, 600, 600, 600, 600, 600], 0);
    }

    function _deploy(uint256 n) internal {
        _deploy(n, _terms(n), token);
    }

    function _deploy(uint256 n, BlockFlow.Terms memory terms, IERC20 token_) internal {
        _makeKeys(n);
        auditors = terms.auditors;
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
    function _makeKeys(uint256 n) internal {
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

    function _stage() internal view returns (Peers.Stage stage) {
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

    function _assertStage(Peers.Stage stage) internal view {
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

    function _entry(uint256 agent, uint256 value) internal view returns (Peers.Entry memory) {
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
        return Peers.Entry(uint8(agent), deadline, v, r, s);
    }

    function _entries(uint256 n) internal view returns (Peers.Entry[] memory batch) {
        batch = new Peers.Entry[](n);
        for (uint256 i; i < n; ++i) {
            batch[i] = _entry(i, BOND);
        }
    }

    function _contribution(uint256 agent) internal view returns (Peers.SignedContribution memory) {
        return _contribution(agent, auditors == 0 ? bytes32(0) : _lot(agent, _secret(agent)));
    }

    function _contribution(uint256 agent, bytes32 lot) internal view returns (Peers.SignedContribution memory) {
        bytes32 digest = _random("model", agent);
        bytes memory cid = abi.encodePacked(bytes4(0x01551220), _random("sealed", agent));
        bytes32 hash = keccak256(
            abi.encode(
                keccak256("Contribution(uint32 round,bytes32 digest,bytes cid,bytes32 lot)"),
                flow.round(),
                digest,
                keccak256(cid),
                lot
            )
        );
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return Peers.SignedContribution(uint8(agent), digest, cid, lot, r, vs);
    }

    /// @dev What an agent tells only when all models are there.
    function _secret(uint256 agent) internal view returns (bytes32) {
        return keccak256(abi.encode("secret", flow.round(), agent));
    }

    function _lot(uint256 agent, bytes32 secret) internal view returns (bytes32) {
        return _digest(
            keccak256(
                abi.encode(keccak256("Lot(uint32 round,uint8 agent,bytes32 secret)"), flow.round(), agent, secret)
            )
        );
    }

    function _contributions(uint256 set) internal view returns (Peers.SignedContribution[] memory batch) {
        batch = new Peers.SignedContribution[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _contribution(i);
        }
    }

    function _retrieval(uint256 agent, uint256 retrieved) internal view returns (Peers.SignedRetrieval memory) {
        return _retrieval(agent, retrieved, auditors == 0 ? bytes32(0) : _secret(agent));
    }

    function _retrieval(uint256 agent, uint256 retrieved, bytes32 secret)
        internal
        view
        returns (Peers.SignedRetrieval memory)
    {
        bytes32 hash = keccak256(
            abi.encode(
                keccak256("Retrieval(uint32 round,uint256 retrieved,bytes32 secret)"), flow.round(), retrieved, secret
            )
        );
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return Peers.SignedRetrieval(uint8(agent), retrieved, secret, r, vs);
    }

    /// @dev The agents in `set` say that they retrieved `retrieved`.
    function _retrievals(uint256 set, uint256 retrieved) internal view returns (Peers.SignedRetrieval[] memory batch) {
        batch = new Peers.SignedRetrieval[](_count(set));
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
        returns (Peers.SignedCommitment memory)
    {
        bytes32 hash = keccak256(
            abi.encode(keccak256("Commitment(uint32 round,bytes32 commitment)"), flow.round(), commitment)
        );
        (bytes32 r, bytes32 vs) = VM.signCompact(keys[agent], _digest(hash));
        // forge-lint: disable-next-line(unsafe-typecast)
        return Peers.SignedCommitment(uint8(agent), commitment, r, vs);
    }

    /// @dev The agents in `set` commit to what they are asked for of their `scores`.
    function _commitments(uint256 set, uint256[][] memory scores)
        internal
        view
        returns (Peers.SignedCommitment[] memory batch)
    {
        batch = new Peers.SignedCommitment[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _signedCommitment(i, _commitment(i, _row(_said(scores, i))));
        }
    }

    function _opening(uint256 agent, uint256[] memory row) internal pure returns (Peers.Opening memory) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return Peers.Opening(uint8(agent), _row(row), SALT);
    }

    function _openings(uint256 set, uint256[][] memory scores) internal view returns (Peers.Opening[] memory batch) {
        batch = new Peers.Opening[](_count(set));
        for ((uint256 i, uint256 filled) = (0, 0); i < keys.length; ++i) {
            if (_has(set, i)) batch[filled++] = _opening(i, _said(scores, i));
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

    /// @dev Any scores, or few different ones, or honest ones.
    function _randomScores(uint256 seed, uint256 n) internal pure returns (uint256[][] memory scores) {
        scores = _honestScores(n);
        if (seed % 3 == 0) return scores;
        for (uint256 a; a < n; ++a) {
            for (uint256 k; k < n; ++k) {
                uint256 random = uint256(keccak256(abi.encode(seed, a, k)));
                scores[a][k] = seed % 3 == 1 ? random % (ONE + 1) : random % 3 * ONE / 2;
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
    function _rows(uint256[][] memory scores, uint256 live) internal view returns (bytes memory rows) {
        for (uint256 a; a < scores.length; ++a) {
            if (_has(live, a)) rows = bytes.concat(rows, _row(_said(scores, a)));
        }
    }

    /// @dev Of what an agent thinks of all models, what it is asked for: nothing, if others are drawn and it is not.
    function _said(uint256[][] memory scores, uint256 agent) internal view virtual returns (uint256[] memory said) {
        if (auditors == 0) return scores[agent];
        if (!_has(flow.drawn(), agent)) return said;
        uint256[] memory circle = _circle();
        uint256 place = _place(circle, agent);
        said = new uint256[](_reach(circle.length));
        for (uint256 i; i < said.length; ++i) {
            said[i] = scores[agent][circle[(place + 1 + i) % circle.length]];
        }
    }

    /// @dev Those of the agents in `live` that audit the model of `agent`.
    function _auditors(uint256 agent, uint256 live) internal view virtual returns (uint256 set) {
        if (auditors == 0) return live;
        uint256[] memory circle = _circle();
        uint256 place = _place(circle, agent) + circle.length;
        for (uint256 i = 1; i <= _reach(circle.length); ++i) {
            set |= _set(circle[(place - i) % circle.length]);
        }
        return set & live;
    }

    /// @dev Fisher and Yates: every place changes with one up to it.
    function _circle() internal view returns (uint256[] memory circle) {
        (uint256 set, bytes32 seed) = (flow.drawn(), flow.seed());
        circle = new uint256[](_count(set));
        for ((uint256 agent, uint256 filled) = (0, 0); filled < circle.length; ++agent) {
            if (_has(set, agent)) circle[filled++] = agent;
        }
        for (uint256 i; i < circle.length; ++i) {
            uint256 j = uint256(keccak256(abi.encode(seed, i))) % (i + 1);
            (circle[i], circle[j]) = (circle[j], circle[i]);
        }
    }

    function _place(uint256[] memory circle, uint256 agent) private pure returns (uint256 place) {
        while (circle[place] != agent) ++place;
    }

    function _reach(uint256 n) internal view returns (uint256) {
        return auditors < n ? auditors : n - 1;
    }

    function _salts(uint256 n) internal pure returns (bytes32[] memory salts) {
        salts = new bytes32[](n);
        for (uint256 i; i < n; ++i) {
            salts[i] = SALT;
        }
    }

    function _middles(uint256[][] memory scores, uint256 live)
        internal
        view
        returns (bytes memory lower, bytes memory upper)
    {
        uint256 n = scores.length;
        uint256[] memory low = new uint256[](n);
        uint256[] memory high = new uint256[](n);
        for (uint256 k; k < n; ++k) {
            if (!_has(live, k)) continue;
            uint256[] memory column = _sortedColumn(scores, _auditors(k, live), k);
            if (column.length == 0) continue;
            low[k] = column[(column.length - 1) / 2];
            high[k] = column[column.length / 2];
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

    /// @dev The paper's algorithm 1, line by line, over those that audit each model; zero for those that are not in `live`.
    function _algorithm1(uint256[][] memory scores, uint256 live) internal view returns (uint256[] memory p) {
        uint256 n = scores.length;
        uint256[] memory m = new uint256[](n);
        uint256[] memory d = new uint256[](n);
        p = new uint256[](n);
        uint256 bestModel = 0;
        uint256 bestAudit = 0;
        for (uint256 k; k < n; ++k) {
            if (!_has(live, k)) continue;
            uint256[] memory column = _sortedColumn(scores, _auditors(k, live), k);
            if (column.length == 0) continue;
            m[k] = (column[(column.length - 1) / 2] + column[column.length / 2]) / 2;
            if (m[k] > bestModel) bestModel = m[k];
        }
        for (uint256 a; a < n; ++a) {
            if (_has(live, a)) d[a] = ONE;
        }
        for (uint256 k; k < n; ++k) {
            uint256 set = _has(live, k) ? _auditors(k, live) : 0;
            for (uint256 a; a < n; ++a) {
                if (!_has(set, a)) continue;
                uint256 t = scores[a][k] > m[k] ? scores[a][k] - m[k] : m[k] - scores[a][k];
                uint256 quality = 2 * t < ONE ? ONE * (ONE - 2 * t) / (ONE + 2 * t) : 0;
                if (quality < d[a]) d[a] = quality;
            }
        }
        for (uint256 a; a < n; ++a) {
            if (d[a] > bestAudit) bestAudit = d[a];
        }
        if (bestModel == 0 || bestAudit == 0) return p;
        for (uint256 k; k < n; ++k) {
            uint256 model = m[k] * ONE / bestModel;
            uint256 audit = d[k] * ONE / bestAudit;
            p[k] = model < audit ? model : audit;
        }
    }

    // --- what must have been logged, or will be ---

    /// @dev The recorded logs tell the overall scores `expected`, one for each agent of the experiment, of those in `live`.
    function _assertScored(uint256 live, uint256[] memory expected) internal {
        Vm.Log[] memory logs = VM.getRecordedLogs();
        uint256 i = 0;
        while (logs[i].topics[0] != BlockFlow.Scored.selector) ++i;
        (uint256 who, uint256[] memory overall) = abi.decode(logs[i].data, (uint256, uint256[]));
        VM.assertEq(who, live);
        for ((uint256 k, uint256 place) = (0, 0); k < expected.length; ++k) {
            if (_has(live, k)) VM.assertEq(overall[place++], expected[k]);
        }
    }

    function _expectRejected(uint256 agent, Peers.Fault fault) internal {
        VM.expectEmit(address(flow));
        // forge-lint: disable-next-line(unsafe-typecast)
        emit Peers.Rejected(_stage(), uint8(agent), fault);
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
