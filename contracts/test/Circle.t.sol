// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {BlockFlow} from "../src/BlockFlow.sol";
import {Circle} from "../src/Circle.sol";
import {Peers} from "../src/Peers.sol";
import {Scoring} from "../src/Scoring.sol";
import {Experiment} from "./Experiment.sol";
import {VM, Vm} from "./Vm.sol";

/// @notice BlockFlow with auditors that are drawn.
contract CircleTest is Experiment {
    uint256 internal constant N = 7;
    uint8 internal constant Q = 3;

    // --- the draw ---

    function test_TheNumberOfAuditorsIsPublic() public {
        _beginDrawn(N, Q);
        VM.assertEq(flow.auditors(), Q);
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_TheCircleHoldsEachAgentOnce(bytes32 seed, uint256 set) public pure {
        set &= _all(104);
        uint256[] memory circle = Circle.draw(seed, set);
        VM.assertEq(circle.length, _count(set));
        uint256 found = 0;
        for (uint256 i; i < circle.length; ++i) {
            found |= _set(circle[i]);
        }
        VM.assertEq(found, set);
    }

    /// @dev 4800 draws of four agents: each of the 24 orders 200 times, within four standard deviations.
    function test_NoOrderIsMoreLikelyThanAnother() public pure {
        uint256[256] memory counts;
        for (uint256 i; i < 4800; ++i) {
            uint256[] memory c = Circle.draw(_random("seed", i), 15);
            ++counts[c[0] << 6 | c[1] << 4 | c[2] << 2 | c[3]];
        }
        uint256 orders = 0;
        for (uint256 i; i < counts.length; ++i) {
            if (counts[i] == 0) continue;
            ++orders;
            VM.assertLe(counts[i], 256, "often");
            VM.assertGe(counts[i], 144, "rarely");
        }
        VM.assertEq(orders, 24);
    }

    function test_TheSeedIsOfAllSecretsInAnyOrder() public {
        bytes32 expected = 0;
        for (uint256 i; i < N; ++i) {
            _beginDrawn(N, Q);
            _submitAll();
            flow.retrieve(_retrievals(_set(i), _all(N)));
            flow.retrieve(_retrievals(_all(N) ^ _set(i), _all(N)));
            expected = 0;
            for (uint256 k; k < N; ++k) {
                expected ^= _secret(k);
            }
            VM.assertEq(flow.seed(), expected);
        }
    }

    function test_EveryRoundHasASeedOfItsOwn() public {
        uint256[][] memory scores = _honestScores(N);
        _beginDrawn(N, Q);
        for (uint256 round; round < 2; ++round) {
            bytes32 expected = 0;
            for (uint256 k; k < N; ++k) {
                expected ^= _secret(k);
            }
            _submitAll();
            VM.expectEmit(address(flow));
            // forge-lint: disable-next-line(unsafe-typecast)
            emit Peers.Drawn(uint32(round), expected, _all(N));
            _retrieveAll();
            _commitAll(scores);
            _scoreAll(scores);
        }
    }

    function test_AuditorsAreDrawnAmongThoseThatAreLeft() public {
        _beginDrawn(N, Q);
        flow.submit(_contributions(_all(N) ^ _set(1)));
        _warpPast();
        flow.advance();
        flow.retrieve(_retrievals(_live() ^ _set(4), _live() ^ _set(2)));
        flow.retrieve(_retrievals(_set(4), _live() ^ _set(2)));
        VM.assertEq(flow.drawn(), _all(N) ^ _set(1) ^ _set(2));
        VM.assertEq(_live(), flow.drawn());
    }

    // --- lots ---

    function test_AModelNeedsALot() public {
        _beginDrawn(N, Q);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        batch[0].lot = 0;
        _expectRejected(0, Peers.Fault.Malformed);
        flow.submit(batch);
        VM.assertEq(_acted(), 0);
    }

    function test_ALotIsSigned() public {
        _beginDrawn(N, Q);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        batch[0].lot = _lot(0, "other");
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.submit(batch);
    }

    /// @dev Or the others, who believe only what is signed, would draw by another seed.
    function test_WhatAnAgentSendsItselfIsSignedToo() public {
        _beginDrawn(N, Q);
        Peers.SignedContribution[] memory contributions = _contributions(_set(0));
        (contributions[0].r, contributions[0].vs) = (0, 0);
        _expectRejected(0, Peers.Fault.BadSignature);
        VM.prank(_account(0));
        flow.submit(contributions);
        _submitAll();
        Peers.SignedRetrieval[] memory retrievals = _retrievals(_set(0), _all(N));
        (retrievals[0].r, retrievals[0].vs) = (0, 0);
        _expectRejected(0, Peers.Fault.BadSignature);
        VM.prank(_account(0));
        flow.retrieve(retrievals);
        VM.assertEq(flow.seed(), 0);
        _retrieveAll();
        Peers.SignedCommitment[] memory commitments = _commitments(_set(0), _honestScores(N));
        (commitments[0].r, commitments[0].vs) = (0, 0);
        _expectRejected(0, Peers.Fault.BadSignature);
        VM.prank(_account(0));
        flow.commit(commitments);
        VM.assertEq(_acted(), 0);
    }

    function test_SignaturesAreToldWhoeverSendsThem() public {
        _beginDrawn(N, Q);
        Peers.SignedContribution[] memory contributions = _contributions(_set(0) | _set(1));
        _expectSigned(contributions[0].r, contributions[0].vs);
        _expectSigned(contributions[1].r, contributions[1].vs);
        bytes[] memory calls = new bytes[](1);
        calls[0] = abi.encodeCall(flow.submit, (contributions));
        flow.multicall(calls);
        flow.submit(_contributions(_all(N) ^ _set(0) ^ _set(1)));
        Peers.SignedRetrieval[] memory retrievals = _retrievals(_set(0), _all(N));
        _expectSigned(retrievals[0].r, retrievals[0].vs);
        VM.prank(_account(0));
        flow.retrieve(retrievals);
        _retrieveAll();
        Peers.SignedCommitment[] memory commitments = _commitments(_set(0), _honestScores(N));
        _expectSigned(commitments[0].r, commitments[0].vs);
        flow.commit(commitments);
    }

    function test_WhereAllAuditAllSignaturesAreNotTold() public {
        _begin(N);
        VM.recordLogs();
        _playRound(_honestScores(N));
        Vm.Log[] memory logs = VM.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            VM.assertTrue(logs[i].topics[0] != Peers.Signed.selector);
        }
    }

    function test_WhereAllAuditAllThereAreNoLots() public {
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        batch[0].lot = _lot(0, "secret");
        _expectRejected(0, Peers.Fault.Malformed);
        flow.submit(batch);
        _submitAll();
        Peers.SignedRetrieval[] memory retrievals = new Peers.SignedRetrieval[](1);
        retrievals[0] = _retrieval(0, _all(N), "secret");
        _expectRejected(0, Peers.Fault.WrongOpening);
        flow.retrieve(retrievals);
        _retrieveAll();
        VM.assertEq(flow.seed(), 0);
        VM.assertEq(flow.drawn(), 0);
    }

    function test_AnotherSecretIsPassedOverAndTheRightOneTakenLater() public {
        _beginDrawn(N, Q);
        _submitAll();
        Peers.SignedRetrieval[] memory batch = new Peers.SignedRetrieval[](1);
        batch[0] = _retrieval(0, _all(N), "other");
        _expectRejected(0, Peers.Fault.WrongOpening);
        flow.retrieve(batch);
        VM.prank(_account(0));
        flow.retrieve(batch);
        VM.assertEq(_acted(), 0);
        flow.retrieve(_retrievals(_set(0), _all(N)));
        VM.assertEq(_acted(), _set(0));
        VM.assertEq(flow.seed(), _secret(0));
    }

    function test_ACopiedLotCannotBeOpened() public {
        _beginDrawn(N, Q);
        Peers.SignedContribution[] memory batch = new Peers.SignedContribution[](1);
        batch[0] = _contribution(1, _lot(0, _secret(0)));
        flow.submit(batch);
        _submitAll();
        Peers.SignedRetrieval[] memory retrievals = new Peers.SignedRetrieval[](1);
        retrievals[0] = _retrieval(1, _all(N), _secret(0));
        _expectRejected(1, Peers.Fault.WrongOpening);
        flow.retrieve(retrievals);
    }

    function test_WhoWithholdsItsSecretLosesItsBond() public {
        uint256[][] memory scores = _honestScores(N);
        _beginDrawn(N, Q);
        _submitAll();
        flow.retrieve(_retrievals(_all(N) ^ _set(5), _all(N)));
        _warpPast();
        flow.advance();
        VM.assertEq(_live(), _all(N) ^ _set(5));
        VM.assertEq(flow.forfeited(), BOND);
        _commitAll(scores);
        _scoreAll(scores);
        VM.assertEq(_refund(5), 0);
    }

    // --- rows ---

    function test_NobodyAuditsItsOwnModel() public {
        _retrieved(N, Q, _honestScores(N));
        for (uint256 k; k < N; ++k) {
            uint256 set = _auditors(k, _all(N));
            VM.assertEq(_count(set), Q);
            VM.assertFalse(_has(set, k));
        }
    }

    function test_ARowThatIsTooLongOrTooShortCannotBeRevealed() public {
        uint256[][] memory scores = _honestScores(N);
        _beginDrawn(N, Q);
        _submitAll();
        _retrieveAll();
        Peers.SignedCommitment[] memory batch = _commitments(_all(N), scores);
        batch[0] = _signedCommitment(0, _commitment(0, new bytes(2 * Q - 2)));
        batch[1] = _signedCommitment(1, _commitment(1, new bytes(2 * N)));
        flow.commit(batch);
        Peers.Opening[] memory openings = _openings(_all(N), scores);
        (openings[0].row, openings[1].row) = (new bytes(2 * Q - 2), new bytes(2 * N));
        _expectRejected(0, Peers.Fault.WrongOpening);
        _expectRejected(1, Peers.Fault.WrongOpening);
        flow.reveal(openings);
        VM.assertEq(_acted(), _all(N) ^ _set(0) ^ _set(1));
    }

    function test_MoreAuditorsThanOthersAreAllOthers() public {
        _retrieved(N, 200, _honestScores(N));
        for (uint256 k; k < N; ++k) {
            VM.assertEq(_auditors(k, _all(N)), _all(N) ^ _set(k));
        }
    }

    function test_RowsOfTheWrongShapeAreRefused() public {
        uint256[][] memory scores = _retrieved(N, Q, _honestScores(N));
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(N));
        bytes memory rows = _rows(scores, _all(N));
        VM.expectRevert(Scoring.WrongShape.selector);
        flow.score(abi.encodePacked(rows, uint16(1)), _salts(N), lower, upper);
        VM.expectRevert(Scoring.WrongShape.selector);
        flow.score("", _salts(N), lower, upper);
    }

    function test_RowsMustBeThoseThatWereCommittedTo() public {
        uint256[][] memory scores = _retrieved(N, Q, _honestScores(N));
        uint256[][] memory others = _honestScores(N);
        for (uint256 k; k < N; ++k) {
            others[3][k] ^= 1;
        }
        (bytes memory lower, bytes memory upper) = _middles(others, _all(N));
        bytes memory rows = _rows(others, _all(N));
        VM.expectRevert(abi.encodeWithSelector(Peers.DoesNotOpen.selector, 3));
        flow.score(rows, _salts(N), lower, upper);
        _scoreAll(scores);
    }

    // --- scores ---

    /// @dev With one that never commits and another that does not reveal, whose places in the circle stay empty.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_ScoresAreThoseOfAlgorithm1OverTheAuditors(uint256 seed, uint8 most, uint256 n) public {
        n = 1 + n % 24;
        most = 1 + most % 26;
        uint256[][] memory scores = _randomScores(seed, n);
        _beginDrawn(n, most);
        _submitAll();
        _retrieveAll();
        if (n > 2) flow.commit(_commitments(_all(n) & ~_set(seed % n), scores));
        else _commitAll(scores);
        if (_stage() == Peers.Stage.Commit) _next();
        if (n > 4) flow.reveal(_openings(_live() & ~_set(seed / n % n), scores));
        if (n > 4 && _stage() == Peers.Stage.Reveal) _next();
        uint256 live = _live();
        uint256[] memory expected = _algorithm1(scores, live);
        VM.recordLogs();
        _scoreAll(scores);
        _assertScored(live, expected);
    }

    /// forge-config: default.fuzz.runs = 128
    function testFuzz_AWrongMedianIsRefused(uint256 seed, uint8 most, uint256 n) public {
        n = 2 + n % 20;
        most = 1 + most % 8;
        uint256[][] memory scores = _retrieved(n, most, _randomScores(seed, n));
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(n));
        bytes memory rows = _rows(scores, _all(n));
        uint256 column = uint256(_random("column", seed)) % n;
        bytes memory wrong = seed % 2 == 0 ? lower : upper;
        uint256 right = uint256(uint8(wrong[2 * column])) << 8 | uint8(wrong[2 * column + 1]);
        uint256 other = seed % 3 == 0 ? seed % (ONE + 1) : scores[seed % n][column];
        VM.assume(other != right);
        // forge-lint: disable-next-line(unsafe-typecast)
        (wrong[2 * column], wrong[2 * column + 1]) = (bytes1(uint8(other >> 8)), bytes1(uint8(other)));
        VM.expectRevert(abi.encodeWithSelector(Circle.NotTheMedianOf.selector, column));
        flow.score(rows, _salts(n), lower, upper);
    }

    function test_AModelWhoseAuditorsAreAllOutIsWorthNothing() public {
        uint256[][] memory scores = _honestScores(N);
        _beginDrawn(N, 1);
        _submitAll();
        _retrieveAll();
        uint256[] memory circle = _circle();
        flow.commit(_commitments(_all(N) ^ _set(circle[2]), scores));
        _next();
        (bytes memory lower, bytes memory upper) = _middles(scores, _live());
        bytes memory rows = _rows(scores, _live());
        lower[2 * circle[3] + 1] = 0x01;
        VM.expectRevert(abi.encodeWithSelector(Circle.NotTheMedianOf.selector, circle[3]));
        flow.score(rows, _salts(N - 1), lower, upper);
        _scoreAll(scores);
        VM.assertEq(_refund(circle[3]), 0);
        // Nobody can say that it was wrong about the model of an agent that is out.
        VM.assertTrue(_refund(circle[1]) > 0);
    }

    function test_ASingleAgentThatIsLeftGetsThePot() public {
        uint256[][] memory scores = _honestScores(2);
        _beginDrawn(2, Q);
        _submitAll();
        _retrieveAll();
        flow.commit(_commitments(_set(1), scores));
        _next();
        _scoreAll(scores);
        VM.assertEq(_refund(1), STAKE + BOND);
        _playRound(scores);
        VM.assertEq(_refund(1), 2 * STAKE + BOND);
    }

    // --- collusion ---

    /// @dev Colluders give each other perfect scores and all others zero. A median is then that of an honest auditor, or
    ///      between two of them, where they are less than half of those that audit the model; only there.
    function test_AMinorityOfTheAuditorsMovesNoMedian() public {
        uint256 kept = 0;
        uint256 moved = 0;
        for (uint256 m = 1; m < 6; ++m) {
            uint256[][] memory scores = _honestScores(11);
            for (uint256 a; a < m; ++a) {
                for (uint256 k; k < 11; ++k) {
                    scores[a][k] = k < m ? ONE : 0;
                }
            }
            _retrieved(11, 5, scores);
            (bytes memory lower,) = _middles(scores, _all(11));
            for (uint256 k; k < 11; ++k) {
                uint256 median = uint256(uint8(lower[2 * k])) << 8 | uint8(lower[2 * k + 1]);
                bool few = 2 * _count(_auditors(k, _all(m))) < 5;
                VM.assertEq(median > 0 && median < ONE, few);
                if (few) ++kept;
                else ++moved;
            }
            _scoreAll(scores);
        }
        VM.assertTrue(kept > 0 && moved > 0);
    }

    // --- what the tests share ---

    function _beginDrawn(uint256 n, uint8 most) internal {
        BlockFlow.Terms memory terms = _terms(n);
        terms.auditors = most;
        _deploy(n, terms, token);
        _fund(n);
        flow.join(_entries(n));
    }

    function _expectSigned(bytes32 r, bytes32 vs) internal {
        VM.expectEmit(address(flow));
        emit Peers.Signed(r, vs);
    }

    /// @dev An experiment in which all have committed to what they are asked for of these scores.
    function _retrieved(uint256 n, uint8 most, uint256[][] memory scores) internal returns (uint256[][] memory) {
        _beginDrawn(n, most);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        return scores;
    }

    /// @dev Some stay behind.
    function _next() internal {
        _warpPast();
        flow.advance();
    }
}
