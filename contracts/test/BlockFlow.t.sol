// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {BlockFlow} from "../src/BlockFlow.sol";
import {Peers} from "../src/Peers.sol";
import {Scoring} from "../src/Scoring.sol";
import {Treasury} from "../src/Treasury.sol";
import {Experiment} from "./Experiment.sol";
import {HookToken} from "./Mocks.sol";
import {VM} from "./Vm.sol";

/// @notice The stages, the rules and the money of BlockFlow, one behaviour a test.
contract BlockFlowTest is Experiment {
    uint256 internal constant N = 5;

    // --- deployment ---

    function test_TermsArePublic() public {
        _deploy(N);
        VM.assertEq(flow.planDigest(), "plan");
        VM.assertEq(flow.rounds(), ROUNDS);
        VM.assertEq(flow.quorum(), N);
        VM.assertEq(flow.bond(), BOND);
        VM.assertEq(flow.stake(), STAKE);
        VM.assertEq(flow.agentCount(), N);
        VM.assertEq(flow.owner(), address(this));
        VM.assertEq(flow.ONE(), ONE);
        _assertStage(Peers.Stage.Enrol);
        VM.assertEq(_deadline(), block.timestamp + STAGE_SECONDS);
    }

    function test_AccountsMustAscend() public {
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (address(2), address(1));
        VM.expectRevert(abi.encodeWithSelector(Peers.NotAscending.selector, address(1)));
        new BlockFlow(token, _terms(2), accounts);
    }

    function test_AnAccountEnrolsOnce() public {
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (address(2), address(2));
        VM.expectRevert(abi.encodeWithSelector(Peers.NotAscending.selector, address(2)));
        new BlockFlow(token, _terms(2), accounts);
    }

    function test_AgentsMustBeFromOneToTheMost() public {
        uint256 most = 104;
        VM.expectRevert(abi.encodeWithSelector(Peers.BadAgentCount.selector, 0));
        new BlockFlow(token, _terms(0), new address[](0));
        VM.expectRevert(abi.encodeWithSelector(Peers.BadAgentCount.selector, most + 1));
        new BlockFlow(token, _terms(1), new address[](most + 1));
    }

    function test_TermsMustFit() public {
        BlockFlow.Terms memory terms = _terms(1);
        terms.rounds = 0;
        _expectBadTerms(terms);
        terms = _terms(0);
        _expectBadTerms(terms);
        terms = _terms(2);
        _expectBadTerms(terms);
        terms = _terms(1);
        terms.stake = BOND / ROUNDS + 1;
        _expectBadTerms(terms);
        for (uint256 i; i < 6; ++i) {
            terms = _terms(1);
            terms.seconds_[i] = 0;
            _expectBadTerms(terms);
        }
    }

    function test_BondsOfAllMustFitTheAmountsThatAreStored() public {
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (address(1), address(2));
        BlockFlow.Terms memory terms = _terms(2);
        terms.bond = type(uint96).max / 2 + 1;
        VM.expectRevert(Peers.BadTerms.selector);
        new BlockFlow(token, terms, accounts);
    }

    function _expectBadTerms(BlockFlow.Terms memory terms) internal {
        address[] memory accounts = new address[](1);
        accounts[0] = address(1);
        VM.expectRevert(Peers.BadTerms.selector);
        new BlockFlow(token, terms, accounts);
    }

    // --- enrolment ---

    function test_BondsArePostedByPermit() public {
        _begin(N);
        VM.assertEq(token.balanceOf(address(flow)), N * BOND);
        VM.assertEq(flow.held(), N * BOND);
        _assertStage(Peers.Stage.Train);
    }

    function test_ABondIsPostedDirectly() public {
        _deploy(N);
        _fund(N);
        VM.prank(_account(2));
        token.approve(address(flow), BOND);
        Peers.Entry[] memory batch = new Peers.Entry[](1);
        batch[0].agent = 2;
        flow.join(batch);
        VM.assertEq(_acted(), _set(2));
    }

    function test_APermitThatSomebodyElseUsedStillCounts() public {
        _deploy(N);
        _fund(N);
        Peers.Entry[] memory batch = new Peers.Entry[](1);
        batch[0] = _entry(0, BOND);
        token.permit(_account(0), address(flow), BOND, batch[0].deadline, batch[0].v, batch[0].r, batch[0].s);
        flow.join(batch);
        VM.assertEq(_acted(), _set(0));
    }

    function test_ABondThatIsTooSmallCostsThatItem() public {
        _deploy(N);
        _fund(N);
        Peers.Entry[] memory batch = _entries(N);
        batch[1] = _entry(1, BOND - 1);
        _expectRejected(1, Peers.Fault.BondNotPosted);
        flow.join(batch);
        VM.assertEq(_acted(), _all(N) ^ _set(1));
        VM.assertEq(flow.held(), (N - 1) * BOND);
    }

    function test_ABondIsPostedOnce() public {
        _deploy(N);
        _fund(N);
        require(token.transfer(_account(0), BOND));
        Peers.Entry[] memory batch = new Peers.Entry[](2);
        (batch[0], batch[1]) = (_entry(0, BOND), _entry(0, BOND));
        _expectRejected(0, Peers.Fault.SecondTime);
        flow.join(batch);
        VM.assertEq(flow.held(), BOND);
    }

    function test_AStrangerCannotJoin() public {
        _deploy(N);
        Peers.Entry[] memory batch = new Peers.Entry[](2);
        // forge-lint: disable-next-line(unsafe-typecast)
        (batch[0].agent, batch[1].agent) = (uint8(N), 255);
        flow.join(batch);
        VM.assertEq(_acted(), 0);
    }

    function test_WithoutAQuorumAllGetTheirBondsBack() public {
        _deploy(N);
        _fund(N);
        Peers.Entry[] memory batch = new Peers.Entry[](1);
        batch[0] = _entry(3, BOND);
        flow.join(batch);
        _warpPast();
        flow.advance();
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(3), BOND);
        _assertAllPaidOut(N, BOND);
    }

    function test_NobodyJoinsAndNothingIsLost() public {
        _deploy(N);
        _warpPast();
        flow.advance();
        _assertStage(Peers.Stage.Finished);
        _assertAllPaidOut(N, 0);
    }

    function test_AQuorumIsEnough() public {
        BlockFlow.Terms memory terms = _terms(N - 1);
        _deploy(N, terms, token);
        _fund(N);
        Peers.Entry[] memory batch = _entries(N);
        batch[4] = _entry(4, 0);
        flow.join(batch);
        _warpPast();
        flow.advance();
        _assertStage(Peers.Stage.Train);
        VM.assertEq(_live(), _all(N - 1));
    }

    function test_ATokenThatCallsBackIsRefused() public {
        HookToken hook = new HookToken(1e30);
        bytes[3] memory calls = [
            abi.encodeCall(Peers.advance, ()),
            abi.encodeCall(Peers.join, (new Peers.Entry[](1))),
            abi.encodeCall(Peers.sweep, ())
        ];
        for (uint256 i; i < calls.length; ++i) {
            _deploy(N, _terms(N), hook);
            require(hook.transfer(_account(0), BOND));
            VM.prank(_account(0));
            hook.approve(address(flow), BOND);
            hook.arm(address(flow), calls[i], i % 2 == 0);
            flow.join(new Peers.Entry[](1));
            VM.assertTrue(hook.tried());
            VM.assertFalse(hook.succeeded());
            VM.assertEq(flow.held(), BOND);
        }
    }

    function test_ATokenThatCallsBackDuringAWithdrawalIsRefused() public {
        HookToken hook = new HookToken(1e30);
        _deploy(1, _terms(1), hook);
        require(hook.transfer(_account(0), BOND));
        VM.prank(_account(0));
        hook.approve(address(flow), BOND);
        flow.join(new Peers.Entry[](1));
        _warpPast();
        flow.advance();
        flow.claim(new uint256[](1));
        hook.arm(address(flow), abi.encodeCall(Treasury.withdraw, _account(0)), true);
        flow.withdraw(_account(0));
        VM.assertFalse(hook.succeeded());
        VM.assertEq(hook.balanceOf(_account(0)), BOND);
    }

    // --- stages ---

    function test_EachStageClosesWhenAllHaveActed() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _assertStage(Peers.Stage.Train);
        _submitAll();
        _assertStage(Peers.Stage.Retrieve);
        _retrieveAll();
        _assertStage(Peers.Stage.Commit);
        _commitAll(scores);
        _assertStage(Peers.Stage.Reveal);
        flow.reveal(_openings(_all(N), scores));
        _assertStage(Peers.Stage.Score);
        _scoreAll(scores);
        _assertStage(Peers.Stage.Train);
        VM.assertEq(flow.round(), 1);
    }

    function test_AStageTakesNothingElse() public {
        _begin(N);
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Train));
        flow.retrieve(new Peers.SignedRetrieval[](0));
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Train));
        flow.score("", new bytes32[](0), "", "");
    }

    function test_AStageCannotBeEndedEarly() public {
        _begin(N);
        VM.warp(_deadline() - 1);
        VM.expectRevert(abi.encodeWithSelector(Peers.TooEarly.selector, _deadline()));
        flow.advance();
    }

    function test_LateInEveryStageIsEliminated() public {
        for (uint256 stage = 1; stage < 5; ++stage) {
            uint256[][] memory scores = _honestScores(N);
            _begin(N);
            uint256 onTime = _all(N) ^ _set(2);
            for (uint256 before = 1; before <= stage; ++before) {
                _act(before, before == stage ? onTime : _all(N), scores);
            }
            _warpPast();
            VM.expectRevert(abi.encodeWithSelector(Peers.TooLate.selector, _deadline()));
            this.act(stage, _set(2), scores);
            VM.expectEmit(address(flow));
            // forge-lint: disable-next-line(unsafe-typecast)
            emit Peers.Eliminated(0, Peers.Stage(uint8(stage)), _set(2));
            flow.advance();
            VM.assertEq(_live(), onTime);
            VM.assertEq(flow.forfeited(), BOND);
            _assertStage(Peers.Stage(stage + 1));
        }
    }

    function test_WhatTheEliminatedLostGoesToTheOthers() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _act(1, _all(N) ^ _set(0), scores);
        _warpPast();
        flow.advance();
        for (uint256 round; round < ROUNDS; ++round) {
            if (round > 0) _submitAll();
            _retrieveAll();
            _commitAll(scores);
            _scoreAll(scores);
        }
        VM.assertEq(_refund(0), 0);
        _assertStage(Peers.Stage.Finished);
        _assertAllPaidOut(N, N * BOND);
    }

    function test_AStageLastsItsFullTimeHoweverLateItBegins() public {
        _begin(N);
        flow.submit(_contributions(_all(N) ^ _set(0)));
        VM.warp(_deadline() + 1 days);
        flow.advance();
        VM.assertEq(_deadline(), VM.getBlockTimestamp() + STAGE_SECONDS);
    }

    function test_AScoreThatNobodyComputedRefundsEqually() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        flow.reveal(_openings(_all(N), scores));
        _warpPast();
        VM.expectRevert(abi.encodeWithSelector(Peers.TooLate.selector, _deadline()));
        flow.score("", new bytes32[](0), "", "");
        flow.advance();
        VM.assertEq(flow.round(), 1);
        for (uint256 i; i < N; ++i) {
            VM.assertEq(_refund(i), STAKE);
        }
    }

    function test_EverybodyVanishesInAnyStageAndGetsBackWhatIsTheirs() public {
        for (uint256 stage = 1; stage < 5; ++stage) {
            uint256[][] memory scores = _honestScores(N);
            _begin(N);
            _act(1, _all(N) ^ _set(4), scores);
            _warpPast();
            flow.advance();
            for (uint256 before = 2; before < stage; ++before) {
                _act(before, _live(), scores);
            }
            _warpPast();
            flow.advance();
            _assertStage(Peers.Stage.Finished);
            VM.assertEq(_refund(0), BOND + BOND / 4);
            VM.assertEq(_refund(4), 0);
            _assertAllPaidOut(N, N * BOND);
        }
    }

    function test_AfterTheEndNothingMoves() public {
        _deploy(N);
        _warpPast();
        flow.advance();
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Finished));
        flow.advance();
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongStage.selector, Peers.Stage.Finished));
        flow.join(new Peers.Entry[](0));
    }

    // --- relays ---

    function test_ABadItemCostsThatItem() public {
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_all(N));
        batch[0].digest = "forged";
        batch[1].cid = hex"01";
        batch[2].r = bytes32(type(uint256).max);
        _expectRejected(0, Peers.Fault.BadSignature);
        _expectRejected(1, Peers.Fault.Malformed);
        _expectRejected(2, Peers.Fault.BadSignature);
        flow.submit(batch);
        VM.assertEq(_acted(), _set(3) | _set(4));
    }

    function test_WhatARelayDroppedTheAgentSendsItself() public {
        _begin(N);
        flow.submit(_contributions(_all(N) ^ _set(1)));
        Peers.SignedContribution[] memory own = _contributions(_set(1));
        (own[0].r, own[0].vs) = (0, 0);
        VM.prank(_account(1));
        flow.submit(own);
        _assertStage(Peers.Stage.Retrieve);
    }

    function test_TheOrderInWhichARelaySendsDoesNotMatter() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_all(N));
        (batch[0], batch[4], batch[1], batch[3]) = (batch[4], batch[0], batch[3], batch[1]);
        flow.submit(batch);
        for (uint256 i = N; i > 0; --i) {
            flow.retrieve(_retrievals(_set(i - 1), _all(N)));
        }
        for (uint256 i = N; i > 0; --i) {
            flow.commit(_commitments(_set(i - 1), scores));
        }
        for (uint256 i = N; i > 0; --i) {
            flow.reveal(_openings(_set(i - 1), scores));
        }
        _scoreAll(scores);
        _assertRefunds(scores, _all(N), 0);
    }

    function test_AReplayedSignatureIsRefused() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        Peers.SignedContribution[] memory contributions = _contributions(_set(0));
        flow.submit(contributions);
        _expectRejected(0, Peers.Fault.SecondTime);
        flow.submit(contributions);
        flow.submit(_contributions(_all(N) ^ _set(0)));
        Peers.SignedRetrieval[] memory retrievals = _retrievals(_all(N), _all(N));
        flow.retrieve(retrievals);
        Peers.SignedCommitment[] memory commitments = _commitments(_all(N), scores);
        flow.commit(commitments);
        _scoreAll(scores);

        // In the next round they hold no longer.
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.submit(contributions);
        _submitAll();
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.retrieve(retrievals);
        _retrieveAll();
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.commit(commitments);
        VM.assertEq(_acted(), 0);
    }

    function test_ASignatureForAnotherContractIsRefused() public {
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        _deploy(N);
        _fund(N);
        flow.join(_entries(N));
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.submit(batch);
    }

    function test_ASignatureForAnotherChainIsRefused() public {
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        VM.chainId(1234);
        _expectRejected(0, Peers.Fault.BadSignature);
        flow.submit(batch);
    }

    function test_OneAgentCannotActForAnother() public {
        _begin(N);
        Peers.SignedContribution[] memory batch = _contributions(_set(0));
        batch[0].agent = 1;
        VM.prank(_account(0));
        flow.submit(batch);
        VM.assertEq(_acted(), 0);
    }

    // --- retrieval ---

    function test_AModelWithheldFromHalfIsOut() public {
        _begin(4);
        _submitAll();
        flow.retrieve(_retrievals(_set(0) | _set(1), _all(4)));
        flow.retrieve(_retrievals(_set(2) | _set(3), _all(4) ^ _set(0)));
        VM.assertEq(_live(), _all(4) ^ _set(0));
        VM.assertEq(flow.forfeited(), BOND);
    }

    function test_AnAgentThatRetrievedHalfIsOut() public {
        _begin(4);
        _submitAll();
        flow.retrieve(_retrievals(_set(0), _set(0) | _set(1)));
        flow.retrieve(_retrievals(_all(4) ^ _set(0), _all(4)));
        VM.assertEq(_live(), _all(4) ^ _set(0));
    }

    function test_TheOwnModelCountsAndUnknownOnesDoNot() public {
        _begin(3);
        _submitAll();
        flow.retrieve(_retrievals(_set(0), _set(1)));
        flow.retrieve(_retrievals(_set(1), _set(0)));
        flow.retrieve(_retrievals(_set(2), ~_all(3)));
        VM.assertEq(_live(), _set(0) | _set(1));
    }

    function test_WhoRetrievesNothingAtAllEndsTheExperiment() public {
        _begin(4);
        _submitAll();
        flow.retrieve(_retrievals(_all(4), 0));
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(0), BOND);
    }

    /// @dev Against counting bit by bit, in any number of transactions.
    /// forge-config: default.fuzz.runs = 64
    function testFuzz_RetrievalRule(uint128 seed, uint256 n) public {
        n = 1 + n % 24;
        _begin(n);
        _submitAll();
        uint256[] memory marks = new uint256[](n);
        uint256 silent = seed % 3 == 0 ? _set(seed % n) : 0;
        for (uint256 i; i < n; ++i) {
            marks[i] = uint256(_random("a", seed + i)) | (seed % 2 == 0 ? uint256(_random("b", seed + i)) : 0);
            if (!_has(silent, i)) flow.retrieve(_retrievals(_set(i), marks[i]));
        }
        if (silent != 0) {
            _warpPast();
            flow.advance();
        }
        uint256 expected = 0;
        for (uint256 k; k < n; ++k) {
            uint256 retrievers = 0;
            for (uint256 a; a < n; ++a) {
                if (!_has(silent, a) && (a == k || _has(marks[a], k))) ++retrievers;
            }
            bool most = 2 * _count((marks[k] & _all(n)) | _set(k)) > n;
            if (!_has(silent, k) && most && 2 * retrievers > n) expected |= _set(k);
        }
        if (expected == 0) _assertStage(Peers.Stage.Finished);
        else VM.assertEq(_live(), expected);
    }

    // --- commit and reveal ---

    function test_ACopiedCommitmentCannotBeOpened() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _submitAll();
        _retrieveAll();
        flow.commit(_commitments(_all(N) ^ _set(4), scores));
        Peers.SignedCommitment[] memory copied = new Peers.SignedCommitment[](1);
        copied[0] = _signedCommitment(4, flow.commitments(0));
        flow.commit(copied);
        flow.reveal(_openings(_all(N) ^ _set(4), scores));
        Peers.Opening[] memory opening = _openings(_set(0), scores);
        opening[0].agent = 4;
        _expectRejected(4, Peers.Fault.WrongOpening);
        flow.reveal(opening);
        _warpPast();
        flow.advance();
        VM.assertEq(_live(), _all(N) ^ _set(4));
        _scoreAll(scores);
        _assertRefunds(scores, _all(N) ^ _set(4), BOND);
    }

    function test_ARevealOfSomethingElseIsRefused() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
        Peers.Opening[] memory batch = _openings(_all(N), scores);
        batch[0].row[1] ^= 0x01;
        batch[1].salt = "other";
        batch[2].row = "";
        batch[3].row = abi.encodePacked(batch[3].row, uint16(0));
        for (uint8 i; i < 4; ++i) {
            _expectRejected(i, Peers.Fault.WrongOpening);
        }
        flow.reveal(batch);
        VM.assertEq(_acted(), _set(4));
    }

    function test_ACommitmentOfAnotherRoundCannotBeOpened() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        bytes32 old = _commitment(0, _row(scores[0]));
        _playRound(scores);
        _submitAll();
        _retrieveAll();
        Peers.SignedCommitment[] memory batch = _commitments(_all(N), scores);
        batch[0] = _signedCommitment(0, old);
        flow.commit(batch);
        _expectRejected(0, Peers.Fault.WrongOpening);
        flow.reveal(_openings(_set(0), scores));
    }

    function test_ARowOfTheWrongLengthCannotBeRevealed() public {
        uint256[][] memory scores = _honestScores(N);
        _begin(N);
        _submitAll();
        _retrieveAll();
        Peers.SignedCommitment[] memory batch = _commitments(_all(N), scores);
        batch[0] = _signedCommitment(0, _commitment(0, hex"0102"));
        flow.commit(batch);
        _expectRejected(0, Peers.Fault.WrongOpening);
        Peers.Opening[] memory opening = new Peers.Opening[](1);
        opening[0] = Peers.Opening(0, hex"0102", SALT);
        flow.reveal(opening);
    }

    // --- scores ---

    function test_ScoresMustBeThoseThatWereCommittedTo() public {
        uint256[][] memory scores = _committed(N);
        uint256[][] memory others = _honestScores(N);
        others[3][2] ^= 1;
        (bytes memory lower, bytes memory upper) = _middles(others, _all(N));
        VM.expectRevert(abi.encodeWithSelector(Peers.DoesNotOpen.selector, 3));
        flow.score(_rows(others, _all(N)), _salts(N), lower, upper);
        _scoreAll(scores);
    }

    function test_EachScoreNeedsItsSalt() public {
        uint256[][] memory scores = _committed(N);
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(N));
        VM.expectRevert(abi.encodeWithSelector(Peers.WrongSaltCount.selector, N - 1));
        flow.score(_rows(scores, _all(N)), _salts(N - 1), lower, upper);
    }

    function test_AMatrixOfTheWrongShapeIsRefused() public {
        uint256[][] memory scores = _committed(4);
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(4));
        bytes memory rows = _rows(scores, _all(4));
        VM.expectRevert(Scoring.WrongShape.selector);
        flow.score(abi.encodePacked(rows, uint16(1)), _salts(4), lower, upper);
        VM.expectRevert(Scoring.WrongShape.selector);
        flow.score(rows, _salts(4), "", upper);
        VM.expectRevert(Scoring.WrongShape.selector);
        flow.score(rows, _salts(4), lower, "");
    }

    function test_AnOddNumberNeedsOneMedian() public {
        uint256[][] memory scores = _committed(N);
        (bytes memory lower,) = _middles(scores, _all(N));
        flow.score(_rows(scores, _all(N)), _salts(N), lower, "");
        VM.assertEq(flow.round(), 1);
    }

    /// @dev Every other score of the column, and values that nobody gave.
    /// forge-config: default.fuzz.runs = 64
    function testFuzz_AWrongMedianIsRefused(uint256 seed, uint256 n) public {
        n = 2 + n % 20;
        uint256[][] memory scores = _committed(n);
        (bytes memory lower, bytes memory upper) = _middles(scores, _all(n));
        uint256 column = uint256(_random("column", seed)) % n;
        bool low = n % 2 == 1 || seed % 2 == 0;
        bytes memory wrong = low ? lower : upper;
        uint256 right = uint256(uint8(wrong[2 * column])) << 8 | uint8(wrong[2 * column + 1]);
        uint256 other = seed % 3 == 0 ? seed % (ONE + 1) : scores[seed % n][column];
        VM.assume(other != right);
        // forge-lint: disable-next-line(unsafe-typecast)
        (wrong[2 * column], wrong[2 * column + 1]) = (bytes1(uint8(other >> 8)), bytes1(uint8(other)));
        VM.expectRevert(abi.encodeWithSelector(Scoring.NotTheMedian.selector, column / 16 * 16));
        flow.score(_rows(scores, _all(n)), _salts(n), lower, upper);
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_ScoresAreThoseOfAlgorithm1(uint256 seed, uint256 n) public {
        n = 1 + n % 36;
        uint256[][] memory scores = _randomScores(seed, n);
        _begin(n);
        _submitAll();
        _retrieveAll();
        uint256 live = _all(n);
        if (seed % 4 == 0 && n > 3) {
            live ^= _set(seed % n);
            flow.commit(_commitments(live, scores));
            _warpPast();
            flow.advance();
        } else {
            _commitAll(scores);
        }
        uint256[] memory expected = _algorithm1(scores, live);
        VM.recordLogs();
        _scoreAll(scores);
        _assertScored(live, expected);
        _assertRefunds(scores, live, live == _all(n) ? 0 : BOND);
    }

    function test_AllMediansZeroRefundsEqually() public {
        uint256[][] memory scores = new uint256[][](N);
        for (uint256 a; a < N; ++a) {
            scores[a] = new uint256[](N);
        }
        _begin(N);
        _playRound(scores);
        for (uint256 i; i < N; ++i) {
            VM.assertEq(_refund(i), STAKE);
        }
    }

    function test_ASingleAgentIsScoredAndRefundedAlone() public {
        _begin(1);
        for (uint256 round; round < ROUNDS; ++round) {
            _playRound(_honestScores(1));
        }
        _assertStage(Peers.Stage.Finished);
        VM.assertEq(_refund(0), BOND);
    }

    // --- collusion ---

    /// @dev Every minority of 3 to 11 agents gives perfect scores to friends and zero to others. Its models are as good as
    ///      any, and all retrieve all: it is in the run and scored, and gets nothing, as its audits are worthless.
    function test_NoMinorityMovesTheMediansOfTheHonest() public {
        for (uint256 n = 3; n <= 11; ++n) {
            for (uint256 m = 1; 2 * m < n; ++m) {
                this.collude(n, m);
            }
        }
    }

    /// @dev Every minority of 3 to 11 agents retrieves its own models only, and withholds them from the honest: it is out,
    ///      and loses its bonds to them.
    function test_NoMinorityThatWithholdsEliminatesTheHonest() public {
        for (uint256 n = 3; n <= 11; ++n) {
            for (uint256 m = 1; 2 * m < n; ++m) {
                this.withhold(n, m);
            }
        }
    }

    /// @notice The agents below `m` score each other up and all others down.
    /// @dev A call of its own, so that its memory is free afterwards.
    function collude(uint256 n, uint256 m) external {
        uint256[][] memory scores = _colludersScores(n, m);
        _begin(n);
        _submitAll();
        _retrieveAll();
        VM.assertEq(_live(), _all(n), "in the run");
        _commitAll(scores);
        _assertMediansHonest(scores, m);
        _scoreAll(scores);
        _assertRefunds(scores, _all(n), 0);
        for (uint256 i; i < n; ++i) {
            if (i < m) VM.assertEq(_refund(i), 0);
            else VM.assertTrue(_refund(i) > 0);
        }
        VM.assertEq(_live(), _all(n), "bonds kept");
    }

    /// @notice The agents below `m` and the others retrieve only what is their own.
    /// @dev A call of its own, so that its memory is free afterwards.
    function withhold(uint256 n, uint256 m) external {
        uint256 honest = _all(n) ^ _all(m);
        uint256[][] memory scores = _colludersScores(n, m);
        _begin(n);
        _submitAll();
        flow.retrieve(_retrievals(_all(m), _all(m)));
        VM.expectEmit(address(flow));
        emit Peers.Eliminated(0, Peers.Stage.Retrieve, _all(m));
        flow.retrieve(_retrievals(honest, honest));
        VM.assertEq(_live(), honest, "in the run");
        _commitAll(scores);
        _scoreAll(scores);
        _assertRefunds(scores, honest, m * BOND);
        for (uint256 i; i < n; ++i) {
            if (i < m) VM.assertEq(_refund(i), 0);
            else VM.assertTrue(_refund(i) > 0);
        }
        VM.assertEq(_live(), honest, "bonds kept");
    }

    /// @dev Those of the agents below `m` are perfect for each other and zero for all others.
    function _colludersScores(uint256 n, uint256 m) internal pure returns (uint256[][] memory scores) {
        scores = _honestScores(n);
        for (uint256 a; a < m; ++a) {
            for (uint256 k; k < n; ++k) {
                scores[a][k] = k < m ? ONE : 0;
            }
        }
    }

    /// @dev Several tests for 3 to 11 agents: one would not have gas enough.
    function test_NoMinorityOfUpToSevenGainsByLeavingTheProtocol() public {
        for (uint256 n = 3; n <= 7; ++n) {
            _departAll(n);
        }
    }

    function test_NoMinorityOfEightGainsByLeavingTheProtocol() public {
        _departAll(8);
    }

    function test_NoMinorityOfNineGainsByLeavingTheProtocol() public {
        _departAll(9);
    }

    function test_NoMinorityOfTenGainsByLeavingTheProtocol() public {
        _departAll(10);
    }

    function test_NoMinorityOfElevenGainsByLeavingTheProtocol() public {
        _departAll(11);
    }

    /// @dev Every minority of `n` agents: late in each of the stages (so that it commits and does not reveal), another's
    ///      commitments, or other scores than it committed to. It loses its bonds to the honest.
    function _departAll(uint256 n) internal {
        for (uint256 m = 1; 2 * m < n; ++m) {
            for (uint256 late = 1; late < 5; ++late) {
                this.depart(n, m, late, false);
            }
            this.depart(n, m, 3, true);
            this.depart(n, m, 4, true);
        }
    }

    /// @notice In the stage `last` the agents below `m` do nothing, or with `forge` something else than they should.
    /// @dev A call of its own, so that its memory is free afterwards.
    function depart(uint256 n, uint256 m, uint256 last, bool forge) external {
        uint256[][] memory scores = _honestScores(n);
        uint256 honest = _all(n) ^ _all(m);
        _begin(n);
        for (uint256 stage = 1; stage < 5; ++stage) {
            _act(stage, honest, scores);
            if (stage < last) _act(stage, _all(m), scores);
            if (stage == last && forge) _forge(m, stage, scores);
            if (_stage() != Peers.Stage(stage)) continue;
            _warpPast();
            flow.advance();
        }
        VM.assertEq(_live(), honest);
        _scoreAll(scores);
        _assertRefunds(scores, honest, m * BOND);
    }

    function _forge(uint256 m, uint256 stage, uint256[][] memory scores) internal {
        if (stage == 3) {
            Peers.SignedCommitment[] memory copied = new Peers.SignedCommitment[](m);
            for (uint256 i; i < m; ++i) {
                copied[i] = _signedCommitment(i, flow.commitments(m));
            }
            flow.commit(copied);
            return;
        }
        Peers.Opening[] memory openings = _openings(_all(m), scores);
        for (uint256 i; i < m; ++i) {
            openings[i].row[0] ^= 0x01;
        }
        flow.reveal(openings);
    }

    function _assertMediansHonest(uint256[][] memory scores, uint256 m) internal view {
        uint256 live = _live();
        for (uint256 k; k < scores.length; ++k) {
            if (!_has(live, k)) continue;
            uint256[] memory all = _sortedColumn(scores, live, k);
            uint256[] memory honest = _sortedColumn(scores, live & ~_all(m), k);
            uint256 median = (all[(all.length - 1) / 2] + all[all.length / 2]) / 2;
            VM.assertTrue(median >= honest[0] && median <= honest[honest.length - 1]);
        }
    }

    // --- money ---

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_RefundsSumToTheStakesAndTheBonds(uint128 seed, uint256 n) public {
        n = 1 + n % 9;
        _begin(n);
        for (uint256 round; round < ROUNDS; ++round) {
            _playRound(_randomScores(seed + round, n));
            uint256 sum = 0;
            for (uint256 i; i < n; ++i) {
                sum += _refund(i);
            }
            VM.assertEq(sum, round + 1 == ROUNDS ? n * BOND : n * STAKE * (round + 1));
        }
        _assertStage(Peers.Stage.Finished);
        _assertAllPaidOut(n, n * BOND);
    }

    function test_AClaimIsPaidOnce() public {
        _begin(1);
        _playRound(_honestScores(1));
        flow.claim(new uint256[](2));
        VM.assertEq(flow.credits(_account(0)), STAKE);
        flow.withdraw(_account(0));
        flow.claim(new uint256[](1));
        VM.expectRevert(abi.encodeWithSelector(Treasury.NothingToWithdraw.selector, _account(0)));
        flow.withdraw(_account(0));
        VM.assertEq(token.balanceOf(_account(0)), STAKE);
    }

    function test_WhatCameInBesideTheBondsGoesToTheOwner() public {
        _begin(N);
        require(token.transfer(address(flow), 7));
        flow.sweep();
        VM.assertEq(flow.credits(address(this)), 7);
        flow.sweep();
        VM.assertEq(flow.credits(address(this)), 7);
        VM.assertEq(flow.pool(), N * BOND);
    }

    function test_OnlyTheOwnerPublishes() public {
        _deploy(N);
        VM.expectEmit(address(flow));
        emit Peers.ModelPublished(1, "digest", hex"01");
        flow.publish(1, "digest", hex"01");
        VM.prank(RELAY);
        VM.expectRevert(abi.encodeWithSelector(Peers.NotOwner.selector, RELAY));
        flow.publish(1, "digest", hex"01");
    }

    // --- what the tests share ---

    /// @notice `_act` as a call of its own, which can revert.
    function act(uint256 stage, uint256 set, uint256[][] memory scores) external {
        _act(stage, set, scores);
    }

    function _act(uint256 stage, uint256 set, uint256[][] memory scores) internal {
        if (stage == 1) flow.submit(_contributions(set));
        else if (stage == 2) flow.retrieve(_retrievals(set, _all(keys.length)));
        else if (stage == 3) flow.commit(_commitments(set, scores));
        else flow.reveal(_openings(set, scores));
    }

    /// @dev An experiment in which all have committed to these scores.
    function _committed(uint256 n) internal returns (uint256[][] memory scores) {
        scores = _honestScores(n);
        _begin(n);
        _submitAll();
        _retrieveAll();
        _commitAll(scores);
    }

    /// @dev The refunds of the first round are in proportion to the overall scores, within one unit, and sum to the pot.
    function _assertRefunds(uint256[][] memory scores, uint256 live, uint256 forfeited) internal view {
        uint256[] memory p = _algorithm1(scores, live);
        uint256 pot = _count(live) * STAKE + forfeited;
        uint256 sum = 0;
        uint256 refunded = 0;
        for (uint256 k; k < p.length; ++k) {
            sum += p[k];
            refunded += _refund(k);
        }
        VM.assertEq(refunded, pot);
        for (uint256 k; k < p.length && sum != 0; ++k) {
            VM.assertLe(_refund(k), pot * p[k] / sum + 1);
            VM.assertLe(pot * p[k] / sum, _refund(k) + 1);
        }
    }

    /// @dev All claim and withdraw: `total` leaves, nothing stays.
    function _assertAllPaidOut(uint256 n, uint256 total) internal {
        uint256 before = token.balanceOf(address(flow));
        uint256[] memory who = new uint256[](n);
        for (uint256 i; i < n; ++i) {
            who[i] = i;
        }
        flow.claim(who);
        for (uint256 i; i < n; ++i) {
            if (flow.credits(_account(i)) != 0) flow.withdraw(_account(i));
        }
        VM.assertEq(before - token.balanceOf(address(flow)), total);
        VM.assertEq(token.balanceOf(address(flow)), 0);
        VM.assertEq(flow.held(), 0);
    }
}
