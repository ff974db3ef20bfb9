// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {DataTrust} from "../src/DataTrust.sol";
import {Peers} from "../src/Peers.sol";
import {Ranking} from "../src/Ranking.sol";
import {HookToken} from "./Mocks.sol";
import {Task} from "./Task.sol";
import {VM} from "./Vm.sol";

/// @notice The rules and the money of DataTrust, one behaviour a test. What it shares with BlockFlow, the tests of that tell.
contract DataTrustTest is Task {
    uint256 internal constant N = 5;

    // --- deployment ---

    function test_TermsArePublic() public {
        DataTrust.Terms memory terms = _taskTerms(N);
        _deployTask(N, terms, token);
        VM.assertEq(trust.planDigest(), "plan");
        VM.assertEq(trust.rounds(), ROUNDS);
        VM.assertEq(trust.quorum(), N);
        VM.assertEq(trust.bond(), BOND);
        VM.assertEq(trust.reward(), REWARD);
        VM.assertEq(trust.unearned(), REWARD);
        VM.assertEq(trust.places(), PLACES);
        VM.assertEq(trust.consistency(), CONSISTENCY);
        VM.assertEq(trust.tolerance(), TOLERANCE);
        VM.assertEq(trust.floor(), FLOOR);
        VM.assertEq(trust.patience(), PATIENCE);
        VM.assertEq(trust.owner(), address(this));
    }

    function test_TermsMustFit() public {
        for (uint256 i; i < 9; ++i) {
            DataTrust.Terms memory terms = _taskTerms(2);
            if (i == 0) terms.quorum = 1;
            if (i == 1) terms.bond = 0;
            if (i == 2) terms.patience = 0;
            if (i == 3) terms.places = 1;
            if (i == 4) terms.reward = ROUNDS * 6 - 1;
            if (i == 5) terms.cid = hex"01";
            if (i == 6) terms.reward = type(uint96).max - 2 * BOND + 1;
            if (i == 7) terms.rounds = 0;
            if (i == 8) terms.seconds_[5] = 0;
            VM.expectRevert(Peers.BadTerms.selector);
            this.deployTwo(terms);
        }
        DataTrust.Terms memory least = _taskTerms(2);
        least.reward = ROUNDS * 6;
        this.deployTwo(least);
    }

    function deployTwo(DataTrust.Terms calldata terms) external {
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (address(1), address(2));
        new DataTrust(token, terms, accounts);
    }

    // --- enrolment ---

    function test_NobodyJoinsBeforeTheRewardIsThere() public {
        _deployTask(N, _taskTerms(N), token);
        _fund(N);
        require(token.transfer(address(trust), REWARD - 1));
        VM.expectRevert(abi.encodeWithSelector(DataTrust.NotFunded.selector, 1));
        trust.join(new Peers.Entry[](0));
        trust.sweep();
        VM.assertEq(trust.credits(address(this)), 0);
        require(token.transfer(address(trust), 1));
        trust.join(_entries(N));
        _assertStage(Peers.Stage.Train);
        VM.assertEq(trust.held(), REWARD + N * BOND);
    }

    function test_WithoutAQuorumAllGoesBack() public {
        _deployTask(N, _taskTerms(N), token);
        require(token.transfer(address(trust), REWARD));
        _fund(N);
        Peers.Entry[] memory batch = _entries(N);
        batch[4] = _entry(4, 0);
        trust.join(batch);
        _warpPast();
        trust.advance();
        _assertStage(Peers.Stage.Finished);
        _assertPaid([uint256(BOND), BOND, BOND, BOND, 0], REWARD);
    }

    function test_NobodyJoinsAndTheRewardGoesBack() public {
        _deployTask(N, _taskTerms(N), token);
        require(token.transfer(address(trust), REWARD / 2));
        _warpPast();
        trust.advance();
        _assertPaid([uint256(0), 0, 0, 0, 0], REWARD / 2);
    }

    function test_ATokenThatCallsBackIsRefused() public {
        HookToken hook = new HookToken(1e30);
        _deployTask(N, _taskTerms(N), hook);
        require(hook.transfer(address(trust), REWARD));
        require(hook.transfer(_account(0), BOND));
        VM.prank(_account(0));
        hook.approve(address(trust), BOND);
        hook.arm(address(trust), abi.encodeCall(DataTrust.join, (new Peers.Entry[](1))), true);
        trust.join(new Peers.Entry[](1));
        VM.assertTrue(hook.tried());
        VM.assertFalse(hook.succeeded());
    }

    // --- rewards ---

    function test_TheBestArePaidByRank() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        _playRound(scores);
        uint256 half = REWARD / ROUNDS / 2;
        _assertRefunds([REWARD / ROUNDS - half, half - half / 3, half / 3, 0, 0]);
        VM.assertEq(trust.round(), 1);
    }

    function test_TheWholeRewardIsPaid() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        for (uint256 round; round < ROUNDS; ++round) {
            _playRound(scores);
        }
        _assertStage(Peers.Stage.Finished);
        uint256 sum = 0;
        for (uint256 i; i < N; ++i) {
            sum += _refund(i);
        }
        VM.assertEq(sum, REWARD + N * BOND);
        VM.assertEq(trust.unearned(), 0);
        VM.assertEq(trust.held(), sum);
        _payOut();
    }

    function test_WhoNobodyElseLikesEarnsNothingByItsOwnScore() public {
        uint256[][] memory scores = _falling(N);
        for (uint256 a; a < N; ++a) {
            scores[a][a] = ONE;
        }
        _beginTask(N);
        _playRound(scores);
        VM.assertEq(_refund(4), 0);
        VM.assertEq(_refund(0), REWARD / ROUNDS - REWARD / ROUNDS / 2);
    }

    function test_MorePlacesThanWorkers() public {
        DataTrust.Terms memory terms = _taskTerms(2);
        terms.places = 200;
        _beginTask(2, terms);
        _playRound(_falling(2));
        uint256 half = REWARD / ROUNDS / 2;
        VM.assertEq(_refund(0), REWARD / ROUNDS - half);
        VM.assertEq(_refund(1), half);
    }

    function test_EqualQualitiesAreRankedByAllSalts() public {
        uint256[] memory qualities = new uint256[](N);
        for (uint256 k; k < N; ++k) {
            qualities[k] = 50_000;
        }
        _beginTask(N);
        _playRound(_agreed(qualities, 0));
        bytes32 lot = keccak256(abi.encodePacked(_salts(N)));
        uint256 first = 0;
        for (uint256 k = 1; k < N; ++k) {
            if (keccak256(abi.encode(lot, k)) > keccak256(abi.encode(lot, first))) first = k;
        }
        VM.assertEq(_refund(first), REWARD / ROUNDS - REWARD / ROUNDS / 2);
    }

    function test_WhoFallsBehindItsTrailIsWorse() public {
        DataTrust.Terms memory terms = _taskTerms(N);
        terms.consistency = 40_000;
        terms.tolerance = type(uint16).max;
        _beginTask(N, terms);
        uint256[] memory qualities = new uint256[](N);
        (qualities[0], qualities[1]) = (65_000, 40_000);
        _playRound(_agreed(qualities, 0));
        uint256 before = _refund(1);
        (qualities[0], qualities[1]) = (40_100, 40_000);
        _playRound(_agreed(qualities, 0));
        VM.assertEq(_refund(1) - before, (REWARD - REWARD / 3) / 2 - (REWARD - REWARD / 3) / 2 / 2);
    }

    function test_ARoundThatNobodyScoredIsNotPaid() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        trust.reveal(_openings(_all(N), scores));
        _warpPast();
        trust.advance();
        VM.assertEq(trust.round(), 1);
        _assertRefunds([uint256(0), 0, 0, 0, 0]);
        VM.assertEq(trust.held(), REWARD - REWARD / ROUNDS + N * BOND);
        _playRound(scores);
        _playRound(scores);
        trust.sweep();
        VM.assertEq(trust.credits(address(this)), REWARD / ROUNDS);
        _payOut();
    }

    function test_ScoresMustBeThoseCommittedTo() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(N));
        bytes memory rows = _rows(scores, _all(N));
        bytes32[] memory salts = _salts(N);
        salts[3] = "another";
        VM.expectRevert(abi.encodeWithSelector(Peers.DoesNotOpen.selector, 3));
        trust.score(rows, salts, lower, upper);
    }

    // --- penalties ---

    function test_ScoresTooFarFromTheMedianCostTheDeposit() public {
        uint256[][] memory scores = _falling(N);
        scores[4][2] -= TOLERANCE + 1;
        _beginTask(N);
        _play(scores, _all(N));
        VM.expectEmit(address(trust));
        emit DataTrust.Penalised(0, _set(4), 0);
        _scoreAll(scores);
        VM.assertEq(_live(), _all(4));
        uint256 half = REWARD / ROUNDS / 2;
        uint256[3] memory earned = [REWARD / ROUNDS - half, half - half / 3, half / 3];
        uint256 passed = 0;
        uint256 before = 0;
        for (uint256 i; i < 3; ++i) {
            passed += earned[i];
            uint256 lost = BOND * passed / (REWARD / ROUNDS);
            VM.assertEq(_refund(i), earned[i] + lost - before);
            before = lost;
        }
        VM.assertEq(before, BOND);
    }

    function test_ScoresAtTheLimitCostNothing() public {
        uint256[][] memory scores = _falling(N);
        scores[4][2] -= TOLERANCE;
        _beginTask(N);
        _playRound(scores);
        VM.assertEq(_live(), _all(N));
    }

    function test_TooPoorForTooLongCostsTheDeposit() public {
        uint256[][] memory poor = _falling(N);
        for (uint256 a; a < N; ++a) {
            poor[a][3] = 1000;
        }
        _beginTask(N);
        _playRound(poor);
        VM.assertEq(_live(), _all(N));
        _play(poor, _all(N));
        VM.expectEmit(address(trust));
        emit DataTrust.Penalised(1, 0, _set(3));
        _scoreAll(poor);
        VM.assertEq(_live(), _all(N) ^ _set(3));
        _playRound(poor);
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(3), 0);
        _payOut();
    }

    function test_AGoodRoundInBetweenForgives() public {
        uint256[][] memory good = _falling(N);
        uint256[][] memory poor = _falling(N);
        for (uint256 a; a < N; ++a) {
            poor[a][3] = 1000;
        }
        _beginTask(N);
        _playRound(poor);
        _playRound(good);
        _playRound(poor);
        VM.assertEq(_live(), _all(N));
    }

    function test_LateInEveryStageCostsTheDeposit() public {
        uint256[][] memory scores = _falling(N);
        for (uint256 stage = 1; stage < 5; ++stage) {
            _beginTask(N);
            uint256 onTime = _all(N) ^ _set(0);
            for (uint256 now_ = 1; now_ <= stage; ++now_) {
                _do(now_, now_ == stage ? onTime : _all(N), scores);
            }
            _warpPast();
            trust.advance();
            VM.assertEq(_live(), onTime);
            VM.assertEq(trust.forfeited(), BOND);
        }
    }

    function test_AModelThatMostCannotReadCostsTheDeposit() public {
        _beginTask(N);
        _submitAll();
        trust.retrieve(_retrievals(_all(2), _all(N)));
        trust.retrieve(_retrievals(_all(N) ^ _all(2), _all(N) ^ _set(1)));
        VM.assertEq(_live(), _all(N) ^ _set(1));
        VM.assertEq(trust.forfeited(), BOND);
    }

    function test_AllPenalisedAtOnceGetTheirDepositsBack() public {
        uint256[][] memory scores = _falling(3);
        for (uint256 a; a < 3; ++a) {
            scores[a][(a + 1) % 3] = 0;
        }
        _beginTask(3);
        _playRound(scores);
        _assertStage(Peers.Stage.Finished);
        for (uint256 i; i < 3; ++i) {
            VM.assertEq(_refund(i), BOND);
        }
        trust.sweep();
        VM.assertEq(trust.credits(address(this)), REWARD);
        _payOut();
    }

    function test_TheOnlyOneInGoodStandingEarnsTheFirstHalfAndWhatOthersLost() public {
        DataTrust.Terms memory terms = _taskTerms(3);
        terms.patience = 1;
        uint256[] memory qualities = new uint256[](3);
        qualities[1] = 60_000;
        _beginTask(3, terms);
        _playRound(_agreed(qualities, 0));
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(1), REWARD / ROUNDS - REWARD / ROUNDS / 2 + 3 * BOND);
        _payOut();
    }

    function test_WhoIsLeftAloneGetsWhatOthersLostAndTheTaskEnds() public {
        for (uint256 stage = 1; stage < 5; ++stage) {
            // Who alone reports what it retrieved is no majority for its own model: then nobody is left.
            if (stage == 2) continue;
            uint256[][] memory scores = _falling(3);
            _beginTask(3);
            for (uint256 now_ = 1; now_ <= stage; ++now_) {
                _do(now_, now_ == stage ? _set(2) : _all(3), scores);
            }
            _warpPast();
            trust.advance();
            _assertStage(Peers.Stage.Finished);
            VM.assertEq(_refund(2), 3 * BOND);
            _payOut();
        }
    }

    function test_EverybodyVanishesAndGetsBackWhatIsTheirs() public {
        for (uint256 stage = 2; stage < 5; ++stage) {
            uint256[][] memory scores = _falling(N);
            _beginTask(N);
            _do(1, _all(4), scores);
            _warpPast();
            trust.advance();
            for (uint256 now_ = 2; now_ < stage; ++now_) {
                _do(now_, _all(4), scores);
            }
            _warpPast();
            trust.advance();
            _assertStage(Peers.Stage.Finished);
            VM.assertEq(_refund(0), BOND + BOND / 4);
            VM.assertEq(_refund(4), 0);
            _payOut();
        }
    }

    // --- leaving ---

    function test_WhoLeavesDoesSoWhenTheRoundIsOverWithItsDeposit() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        trust.depart(_leaves(_set(0) | _set(4)));
        VM.assertEq(trust.leaving(), _set(0) | _set(4));
        _play(scores, _all(N));
        VM.expectEmit(address(trust));
        emit DataTrust.Left(0, _set(0) | _set(4));
        _scoreAll(scores);
        VM.assertEq(_live(), 0x0e);
        VM.assertEq(trust.leaving(), 0);
        VM.assertEq(_refund(0), BOND + REWARD / ROUNDS - REWARD / ROUNDS / 2);
        VM.assertEq(_refund(4), BOND);
        _playRound(scores);
        _playRound(scores);
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(4), BOND);
        _payOut();
    }

    function test_AWorkerLeavesByItsOwnTransaction() public {
        _beginTask(N);
        DataTrust.SignedLeave[] memory batch = _leaves(_set(1));
        (batch[0].r, batch[0].vs) = (0, 0);
        VM.prank(_account(1));
        trust.depart(batch);
        VM.assertEq(trust.leaving(), _set(1));
    }

    function test_NobodyMakesAnotherLeave() public {
        _beginTask(N);
        trust.depart(_leaves(_set(0)));
        DataTrust.SignedLeave[] memory batch = new DataTrust.SignedLeave[](3);
        (batch[0], batch[1], batch[2]) = (_leave(0), _leave(1), _leave(2));
        batch[1].agent = 3;
        batch[2].agent = 9;
        _expectRejected(0, Peers.Fault.SecondTime);
        _expectRejected(3, Peers.Fault.BadSignature);
        _expectRejected(9, Peers.Fault.NotInTheRun);
        trust.depart(batch);
        VM.assertEq(trust.leaving(), _set(0));
    }

    function test_NobodyLeavesBeforeOrAfter() public {
        _deployTask(N, _taskTerms(N), token);
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Enrol));
        trust.depart(new DataTrust.SignedLeave[](0));
        _warpPast();
        trust.advance();
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Finished));
        trust.depart(new DataTrust.SignedLeave[](0));
    }

    function test_WhoLeavesAndBreaksARuleLosesItsDeposit() public {
        uint256[][] memory scores = _falling(N);
        _beginTask(N);
        trust.depart(_leaves(_set(4)));
        scores[4][2] = 0;
        _playRound(scores);
        VM.assertEq(_live(), _all(4));
        VM.assertEq(_refund(4), 0);
    }

    function test_WhenAllButOneHaveLeftTheTaskEnds() public {
        for (uint256 left; left < 2; ++left) {
            _beginTask(N);
            trust.depart(_leaves(_all(N) ^ left));
            _playRound(_falling(N));
            _assertStage(Peers.Stage.Finished);
            trust.sweep();
            VM.assertEq(trust.credits(address(this)), REWARD - REWARD / ROUNDS);
            VM.assertEq(_refund(4), BOND);
            _payOut();
        }
    }

    // --- without the requester ---

    /// @dev From the moment the reward is there, anybody else does all that is needed.
    function test_TheRequesterIsNotNeeded() public {
        _deployTask(N, _taskTerms(N), token);
        require(token.transfer(address(trust), REWARD));
        _fund(N);
        uint256[][] memory scores = _falling(N);
        Peers.Entry[] memory batch = _entries(N);
        VM.prank(RELAY);
        trust.join(batch);
        for (uint256 round; round < ROUNDS; ++round) {
            _play(scores, _all(N));
            bytes memory rows = _rows(scores, _all(N));
            (bytes memory lower, bytes memory upper) = _middles(scores, _all(N));
            VM.prank(RELAY);
            trust.score(rows, _salts(N), lower, upper);
        }
        uint256[] memory who = new uint256[](1);
        VM.prank(RELAY);
        trust.claim(who);
        VM.prank(RELAY);
        trust.withdraw(_account(0));
        VM.assertEq(token.balanceOf(_account(0)), BOND + ROUNDS * (REWARD / ROUNDS - REWARD / ROUNDS / 2) + 2);
    }

    /// @dev Whoever stops doing anything, in any stage: others end it.
    function test_NothingIsLockedWhateverStops() public {
        for (uint256 stage; stage < 6; ++stage) {
            uint256[][] memory scores = _falling(N);
            _deployTask(N, _taskTerms(N), token);
            require(token.transfer(address(trust), REWARD));
            _fund(N);
            if (stage > 0) trust.join(_entries(N));
            for (uint256 now_ = 1; now_ < stage; ++now_) {
                _do(now_, _all(N), scores);
            }
            while (_stage() != Peers.Stage.Finished) {
                _warpPast();
                VM.prank(RELAY);
                trust.advance();
            }
            for (uint256 i; i < N; ++i) {
                VM.assertEq(_refund(i), stage == 0 ? 0 : BOND);
            }
            _payOut();
        }
    }

    // --- the majority ---

    /// @dev Of 2 M + 2 workers M say anything about anybody, also that they could not read a model.
    function test_NoMinorityCostsAnHonestWorkerItsDeposit(uint256 seed, uint256 m) public {
        m = m % 4;
        uint256 n = 2 * m + 2;
        uint256[][] memory scores = _randomScores(3 * (seed % 2 ** 200) + 1 + seed % 2, n);
        for (uint256 k; k < n; ++k) {
            uint256 base = FLOOR + 1000 + uint256(keccak256(abi.encode(seed, "base", k))) % 20_000;
            for (uint256 a = m; a < n; ++a) {
                scores[a][k] = base + uint256(keccak256(abi.encode(seed, a, k, "luck"))) % (TOLERANCE + 1);
            }
        }
        uint256 honest = _all(n) ^ _all(m);
        DataTrust.Terms memory terms = _taskTerms(n);
        terms.patience = 1;
        _beginTask(n, terms);
        _submitAll();
        trust.retrieve(_retrievals(_all(m), _all(m)));
        trust.retrieve(_retrievals(honest, _all(n)));
        if (_stage() != Peers.Stage.Commit) return;
        trust.commit(_commitments(_live(), scores));
        _scoreAll(scores);
        VM.assertEq(_live() & honest, honest);
    }

    // --- shares and ranks ---

    function test_SharesFallAndSumExactly(uint256 reward, uint256 places) public pure {
        places = 2 + places % 254;
        reward = Ranking.smallest(places) + reward % 1e30;
        uint256[] memory shares = Ranking.shares(reward, places);
        VM.assertEq(shares[0], (reward + 1) / 2);
        uint256 sum = shares[0];
        for (uint256 i = 1; i < places; ++i) {
            if (i > 1) VM.assertTrue(shares[i] < shares[i - 1]);
            sum += shares[i];
        }
        VM.assertTrue(shares[places - 1] > 0);
        VM.assertEq(sum, reward);
    }

    function test_TheSmallestRewardIsTheSmallest() public pure {
        uint256[] memory shares = Ranking.shares(Ranking.smallest(5), 5);
        for (uint256 i = 1; i < 5; ++i) {
            VM.assertEq(shares[i], 5 - i);
        }
    }

    function test_TheBestAreTheLargest(uint256 seed, uint256 n, uint256 places) public pure {
        n = 1 + n % 20;
        places = 1 + places % n;
        uint256[] memory keys_ = new uint256[](n);
        for (uint256 i; i < n; ++i) {
            keys_[i] = Ranking.key(uint256(keccak256(abi.encode(seed, i))) % 4, bytes32(seed), i);
            VM.assertEq(Ranking.agentOf(keys_[i]), i);
        }
        uint256[] memory top = Ranking.best(keys_, places);
        for (uint256 i; i < places; ++i) {
            uint256 larger = 0;
            for (uint256 j; j < n; ++j) {
                if (keys_[j] > top[i]) ++larger;
            }
            VM.assertEq(larger, i);
        }
    }

    // --- helpers ---

    /// @dev Up to the score.
    function _play(uint256[][] memory scores, uint256 set) internal {
        for (uint256 stage = 1; stage < 4; ++stage) {
            _do(stage, set, scores);
        }
    }

    /// @dev What `stage` asks of the workers in `set`.
    function _do(uint256 stage, uint256 set, uint256[][] memory scores) internal {
        if (stage == 1) trust.submit(_contributions(set));
        if (stage == 2) trust.retrieve(_retrievals(set, _live()));
        if (stage == 3) trust.commit(_commitments(set, scores));
        if (stage == 4) trust.reveal(_openings(set, scores));
    }

    function _assertRefunds(uint256[5] memory expected) internal view {
        for (uint256 i; i < N; ++i) {
            VM.assertEq(_refund(i), expected[i]);
        }
    }

    /// @dev What each worker and the requester can have.
    function _assertPaid(uint256[5] memory expected, uint256 requester) internal {
        _assertRefunds(expected);
        trust.sweep();
        VM.assertEq(trust.credits(address(this)), requester);
        _payOut();
    }
}
