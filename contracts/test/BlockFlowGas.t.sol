// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {BlockFlow} from "../src/BlockFlow.sol";
import {Peers} from "../src/Peers.sol";
import {Experiment} from "./Experiment.sol";
import {VM} from "./Vm.sol";

/// @notice What BlockFlow costs in gas per agent and round. See the tables with `forge test -vv --match-contract Gas`.
/// @dev Isolated: every call from a test is a transaction of its own, with 21,000 gas, its calldata, cold storage and
///      refunds included. A round's `score` also refunds the stakes; a claim moves all refunds of an agent, once
///      in an experiment or as often as it likes, and is measured besides.
contract BlockFlowGasTest is Experiment {
    uint256 internal constant TX_GAS_CAP = 16_777_216;

    string internal constant HEADING =
        "agents  round   join    submit  retrieve  commit  reveal  score   c+r+s   in all  paper     claim";

    /// @dev Gas of each stage, all agents together.
    struct Stages {
        uint256 join;
        uint256 submit;
        uint256 retrieve;
        uint256 commit;
        uint256 reveal;
        uint256 score;
        uint256 claim;
    }

    event log(string line);

    /// forge-config: default.isolate = true
    function test_GasRelayed() public {
        emit log("relayed, gas per agent");
        emit log(HEADING);
        uint256[5] memory sizes = [uint256(3), 10, 25, 50, 100];
        for (uint256 i; i < sizes.length; ++i) {
            _measure(sizes[i], 0, false);
        }
    }

    /// forge-config: default.isolate = true
    function test_GasOfTheMostAgents() public {
        emit log("relayed, gas per agent");
        emit log(HEADING);
        _measure(104, 0, false);
    }

    /// forge-config: default.isolate = true
    function test_GasOfOwnTransactions() public {
        emit log("by own transactions, gas per agent");
        emit log(HEADING);
        uint256[5] memory sizes = [uint256(3), 10, 25, 50, 100];
        for (uint256 i; i < sizes.length; ++i) {
            _measure(sizes[i], 0, true);
        }
    }

    /// forge-config: default.isolate = true
    function test_GasOfFiveAuditors() public {
        _measureDrawn(5, false);
    }

    /// forge-config: default.isolate = true
    function test_GasOfFiveAuditorsByOwnTransactions() public {
        _measureDrawn(5, true);
    }

    /// forge-config: default.isolate = true
    function test_GasOfNineAuditors() public {
        _measureDrawn(9, false);
    }

    /// forge-config: default.isolate = true
    function test_GasOfNineAuditorsByOwnTransactions() public {
        _measureDrawn(9, true);
    }

    /// forge-config: default.isolate = true
    function test_GasOfFifteenAuditors() public {
        _measureDrawn(15, false);
    }

    /// forge-config: default.isolate = true
    function test_GasOfFifteenAuditorsByOwnTransactions() public {
        _measureDrawn(15, true);
    }

    /// @dev As many as there are others.
    /// forge-config: default.isolate = true
    function test_GasOfTheMostAuditors() public {
        emit log("relayed, gas per agent, 103 auditors");
        emit log(HEADING);
        _measure(104, 103, false);
    }

    function _measureDrawn(uint256 most, bool own) internal {
        string memory how = own ? "by own transactions, gas per agent, " : "relayed, gas per agent, ";
        emit log(string.concat(how, VM.toString(most), " auditors"));
        emit log(HEADING);
        uint256[3] memory sizes = [uint256(10), 50, 100];
        for (uint256 i; i < sizes.length; ++i) {
            _measure(sizes[i], most, own);
        }
    }

    function _measure(uint256 n, uint256 most, bool own) internal {
        uint256[][] memory scores = _honestScores(n);
        BlockFlow.Terms memory terms = _terms(n);
        // forge-lint: disable-next-line(unsafe-typecast)
        terms.auditors = uint8(most);
        _deploy(n, terms, token);
        _fund(n);
        Stages memory gas;
        _join(gas, n, own);
        uint256[] memory who = new uint256[](n);
        for (uint256 i; i < n; ++i) {
            who[i] = i;
        }
        for (uint256 round; round < (most == 0 ? 2 : 1); ++round) {
            _submit(gas, n, own);
            _retrieve(gas, n, own);
            _commit(gas, n, own, scores);
            if (own) _reveal(gas, n, scores);
            _scoreAll(scores);
            gas.score = _last();
            flow.claim(who);
            gas.claim = _last();
            _report(gas, n, round, own);
        }
    }

    function _report(Stages memory gas, uint256 n, uint256 round, bool own) internal {
        uint256 audit = (gas.commit + gas.reveal + gas.score) / n;
        uint256 all = (gas.submit + gas.retrieve) / n + audit;
        string memory line = string.concat(_cell(n), _cell(round), _cell(gas.join / n), _cell(gas.submit / n));
        line = string.concat(line, _cell(gas.retrieve / n), "  ", _cell(gas.commit / n), _cell(gas.reveal / n));
        line = string.concat(line, _cell(gas.score / n), _cell(audit), _cell(all));
        emit log(string.concat(line, _cell(_papersFit(n)), "  ", _cell(gas.claim / n)));
        if (n != 50 || auditors != 0) return;
        VM.assertLe(all, own ? 180_000 : 90_000, "whole round");
        if (!own) VM.assertLe(audit, 40_000, "commit, reveal and score");
    }

    function _join(Stages memory gas, uint256 n, bool own) internal {
        Peers.Entry[] memory batch = _entries(n);
        uint256 step = own ? 1 : n > 64 ? 64 : n;
        for (uint256 i; i < n; i += step) {
            Peers.Entry[] memory part = new Peers.Entry[](i + step > n ? n - i : step);
            for (uint256 j; j < part.length; ++j) {
                part[j] = batch[i + j];
            }
            flow.join(part);
            gas.join += _last();
        }
    }

    function _submit(Stages memory gas, uint256 n, bool own) internal {
        gas.submit = 0;
        if (!own) {
            flow.submit(_contributions(_all(n)));
            gas.submit = _last();
            return;
        }
        for (uint256 i; i < n; ++i) {
            Peers.SignedContribution[] memory batch = _contributions(_set(i));
            if (auditors == 0) (batch[0].r, batch[0].vs) = (0, 0);
            VM.prank(_account(i));
            flow.submit(batch);
            gas.submit += _last();
        }
    }

    function _retrieve(Stages memory gas, uint256 n, bool own) internal {
        gas.retrieve = 0;
        if (!own) {
            flow.retrieve(_retrievals(_all(n), _all(n)));
            gas.retrieve = _last();
            return;
        }
        for (uint256 i; i < n; ++i) {
            Peers.SignedRetrieval[] memory batch = _retrievals(_set(i), _all(n));
            if (auditors == 0) (batch[0].r, batch[0].vs) = (0, 0);
            VM.prank(_account(i));
            flow.retrieve(batch);
            gas.retrieve += _last();
        }
    }

    function _commit(Stages memory gas, uint256 n, bool own, uint256[][] memory scores) internal {
        gas.commit = 0;
        if (!own) {
            flow.commit(_commitments(_all(n), scores));
            gas.commit = _last();
            return;
        }
        for (uint256 i; i < n; ++i) {
            Peers.SignedCommitment[] memory batch = _commitments(_set(i), scores);
            if (auditors == 0) (batch[0].r, batch[0].vs) = (0, 0);
            VM.prank(_account(i));
            flow.commit(batch);
            gas.commit += _last();
        }
    }

    function _reveal(Stages memory gas, uint256 n, uint256[][] memory scores) internal {
        gas.reveal = 0;
        for (uint256 i; i < n; ++i) {
            Peers.Opening[] memory batch = _openings(_set(i), scores);
            VM.prank(_account(i));
            flow.reveal(batch);
            gas.reveal += _last();
        }
    }

    /// @dev Section 5, for one round.
    function _papersFit(uint256 n) internal pure returns (uint256) {
        return 31_913 * n + 542_045 + 477_050 * n;
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
