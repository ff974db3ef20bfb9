// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {BlockFlow} from "../src/BlockFlow.sol";
import {Peers} from "../src/Peers.sol";
import {Experiment} from "./Experiment.sol";
import {VM, Vm} from "./Vm.sol";

/// @title BlockFlowHandler
/// @notice Lets the others do what the fuzzer asks for, and the honest agents what they must; keeps books from the logs.
/// @dev The agents 0 and 1 are a minority that does anything, the agents 2 to 4 are honest: before time goes on they have
///      acted. No call may be refused, but for one that says which refusal it expects.
contract BlockFlowHandler is Experiment {
    uint256 internal constant N = 5;
    uint256 internal constant HONEST = 0x1c;

    /// @notice Ghosts, by the logs: who was eliminated, what was put into all pots, and rests of bonds that went back.
    uint256 public eliminated;
    uint256 public pots;
    uint256 public rests;

    /// @notice Bonds posted, and donations, and what was withdrawn.
    uint256 public posted;
    uint256 public donated;
    uint256 public withdrawn;

    /// @notice How often each kind of action had an effect. That of wrong scores is that they are refused.
    uint256 public rounds;
    uint256 public misdeeds;
    uint256 public ownActs;
    uint256 public earlyScores;
    uint256 public wrongScores;
    uint256 public forgottenScores;

    uint256[][] internal _scores;

    /// @dev So few rounds that a campaign ends, and a stake that leaves a rest of the bond.
    constructor(uint8 auditors_) {
        BlockFlow.Terms memory terms = _terms(N);
        terms.auditors = auditors_;
        terms.rounds = 2;
        terms.stake = BOND / 3;
        _deploy(N, terms, token);
        _fund(N);
        flow.join(_entries(N));
        posted = N * BOND;
        _scores = _honestScores(N);
    }

    /// @notice The contract under test.
    function experiment() external view returns (BlockFlow) {
        return flow;
    }

    /// @notice The sum of what was refunded and is not yet claimed.
    function refunds() external view returns (uint256 sum) {
        for (uint256 i; i < N; ++i) {
            sum += _refund(i);
        }
    }

    /// @notice A dishonest agent does something that suits the stage, or not; by a relay or itself.
    function misbehave(uint256 who, uint256 how, bool own) public {
        who %= 2;
        Peers.Stage stage = _stage();
        uint256 before = _acted();
        bytes32 commitment = flow.commitments(2);
        if (stage == Peers.Stage.Commit) {
            // A commitment that can be opened, one of somebody else, or none.
            for (uint256 k; k < N; ++k) {
                _scores[who][k] = how % 3 == 0 ? (k < 2 ? ONE : 0) : uint256(keccak256(abi.encode(how, k))) % (ONE + 1);
            }
            if (how % 4 != 0) commitment = _commitment(who, _row(_said(_scores, who)));
        }
        _actAlone(who, how % 2 == 0 ? how : _live(), commitment, own);
        if (_acted() != before || _stage() != stage) ++misdeeds;
    }

    /// @notice An honest agent acts before the others, by a transaction of its own.
    function actItself(uint256 who) external {
        who = 2 + who % 3;
        Peers.Stage stage = _stage();
        uint256 before = _acted();
        bool may = stage < Peers.Stage.Score && !_has(before, who);
        _actAlone(who, _live(), _commitment(who, _row(_said(_scores, who))), true);
        VM.assertEq(_acted() != before || _stage() != stage, may);
        if (may) ++ownActs;
    }

    /// @notice The honest agents that have not yet acted do, by a relay.
    function act() public {
        Peers.Stage stage = _stage();
        uint256 todo = HONEST & _live() & ~_acted();
        VM.recordLogs();
        if (stage == Peers.Stage.Train) flow.submit(_contributions(todo));
        else if (stage == Peers.Stage.Retrieve) flow.retrieve(_retrievals(todo, _live()));
        else if (stage == Peers.Stage.Commit) flow.commit(_commitments(todo, _scores));
        else if (stage == Peers.Stage.Reveal) flow.reveal(_openings(todo, _scores));
        else if (stage == Peers.Stage.Score) _scoreAll(_scores);
        _book();
    }

    /// @notice Somebody who was told all scores does not wait until they are revealed. If those of an agent are not what it
    ///         committed to, that is refused.
    function scoreEarly() external {
        if (_stage() != Peers.Stage.Reveal) return;
        uint256 live = _live();
        (bytes memory lower, bytes memory upper) = _middles(_scores, live);
        (bytes memory rows, bytes32[] memory salts) = (_rows(_scores, live), _salts(_count(live)));
        uint256 liar = 0;
        while (liar < N && (!_has(live, liar) || _opens(liar))) ++liar;
        VM.recordLogs();
        if (liar < N) VM.expectRevert(abi.encodeWithSelector(Peers.DoesNotOpen.selector, liar));
        flow.score(rows, salts, lower, upper);
        _book();
        if (liar < N) ++wrongScores;
        else ++earlyScores;
    }

    /// @notice Time goes on; somebody ends the stage. Three in four times a dishonest agent does something before, or else
    ///         it would hardly ever be left.
    function pass(uint256 how) external {
        Peers.Stage stage = _stage();
        for (uint256 who; who < 2; ++who) {
            if (how >> 3 * who & 3 != 0) misbehave(who, how >> 6, how >> 3 * who & 4 == 0);
        }
        if (_stage() == stage) act();
        if (_stage() != stage || stage == Peers.Stage.Finished) return;
        _warpPast();
        VM.recordLogs();
        flow.advance();
        _book();
    }

    /// @notice Nobody computes the scores in time.
    function forgetToScore() external {
        if (_stage() != Peers.Stage.Score) return;
        _warpPast();
        VM.recordLogs();
        flow.advance();
        _book();
        ++forgottenScores;
    }

    function claim(uint256 who) external {
        uint256[] memory one = new uint256[](1);
        one[0] = who % N;
        flow.claim(one);
    }

    function withdraw(uint256 who) external {
        address account = _account(who % N);
        withdrawn += flow.credits(account);
        if (flow.credits(account) != 0) flow.withdraw(account);
    }

    function donate(uint256 amount) external {
        donated += amount % 1e6;
        require(token.transfer(address(flow), amount % 1e6));
    }

    function sweep() external {
        flow.sweep();
    }

    /// @dev `agent` does what the stage asks for. If it does so by its `own` transaction, it signs only what it must.
    function _actAlone(uint256 agent, uint256 retrieved, bytes32 commitment, bool own) private {
        Peers.Stage stage = _stage();
        bool unsigned = own && auditors == 0;
        VM.recordLogs();
        if (stage == Peers.Stage.Train) {
            Peers.SignedContribution[] memory batch = _contributions(_set(agent));
            if (unsigned) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(agent));
            flow.submit(batch);
        } else if (stage == Peers.Stage.Retrieve) {
            Peers.SignedRetrieval[] memory batch = _retrievals(_set(agent), retrieved);
            if (agent < 2 && retrieved % 5 == 0) batch[0] = _retrieval(agent, retrieved, "not what it chose");
            if (unsigned) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(agent));
            flow.retrieve(batch);
        } else if (stage == Peers.Stage.Commit) {
            Peers.SignedCommitment[] memory batch = new Peers.SignedCommitment[](1);
            batch[0] = _signedCommitment(agent, commitment);
            if (unsigned) (batch[0].r, batch[0].vs) = (0, 0);
            if (own) VM.prank(_account(agent));
            flow.commit(batch);
        } else if (stage == Peers.Stage.Reveal) {
            Peers.Opening[] memory batch = _openings(_set(agent), _scores);
            if (own) VM.prank(_account(agent));
            flow.reveal(batch);
        }
        _book();
    }

    /// @dev Whether an agent's scores are those that it committed to.
    function _opens(uint256 agent) private view returns (bool) {
        return flow.commitments(agent) == _commitment(agent, _row(_said(_scores, agent)));
    }

    function _book() private {
        Vm.Log[] memory logs = VM.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == Peers.Eliminated.selector) eliminated |= abi.decode(logs[i].data, (uint256));
            if (logs[i].topics[0] != Peers.Refunded.selector) continue;
            (uint256 live, uint256 pot, uint256 rest) = abi.decode(logs[i].data, (uint256, uint256, uint256));
            pots += pot;
            rests += _count(live) * rest;
            ++rounds;
        }
    }
}

/// @notice What holds whatever the minority does.
/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 128
/// forge-config: default.invariant.fail-on-revert = true
contract BlockFlowInvariantsTest {
    BlockFlowHandler internal handler;
    BlockFlow internal flow;

    function setUp() public {
        handler = new BlockFlowHandler(_auditorsOfAModel());
        flow = handler.experiment();
    }

    function invariant_TheBalanceIsPoolAndCredits() public view {
        uint256 balance = flow.token().balanceOf(address(flow));
        VM.assertEq(balance, flow.pool() + flow.totalCredits());
        VM.assertEq(balance, handler.posted() + handler.donated() - handler.withdrawn());
        VM.assertGe(flow.pool(), flow.held(), "held");
    }

    /// @dev What is held is refunds, and what is left of the bonds of those in the run, and what was forfeited.
    function invariant_WhatIsHeldIsRefundsAndBondsAndForfeits() public view {
        (Peers.Stage stage,, uint104 live,) = flow.progress();
        uint256 bonds = 0;
        for (uint256 set = stage == Peers.Stage.Finished ? 0 : live; set != 0; set &= set - 1) {
            bonds += flow.bond() - uint256(flow.stake()) * flow.round();
        }
        VM.assertEq(flow.held(), handler.refunds() + bonds + flow.forfeited());
    }

    function invariant_RefundsSumToThePotsExactly() public view {
        uint256 claimed = handler.posted() - flow.held();
        VM.assertEq(handler.refunds() + claimed, handler.pots() + handler.rests());
    }

    function invariant_NoHonestAgentIsEliminated() public view {
        VM.assertEq(handler.eliminated() & 0x1c, 0);
        (,, uint104 live,) = flow.progress();
        VM.assertEq(uint256(live) & 0x1c, 0x1c);
    }

    function invariant_WhenItIsOverAllBondsWentBack() public view {
        (Peers.Stage stage,,,) = flow.progress();
        if (stage == Peers.Stage.Finished) VM.assertEq(handler.pots() + handler.rests(), handler.posted());
    }

    /// @dev Or the invariants would hold of a run in which nothing happens. Counts over eight campaigns of random calls,
    ///      which are always the same; each of them finishes.
    function test_SuchACampaignGetsSomewhere() public {
        uint256[7] memory counts;
        for (uint256 seed; seed < 8; ++seed) {
            setUp();
            for (uint256 i; i < 128; ++i) {
                _call(uint256(keccak256(abi.encode(seed, i))));
            }
            (Peers.Stage stage,, uint104 live,) = flow.progress();
            VM.assertEq(uint256(stage), uint256(Peers.Stage.Finished), "stage");
            VM.assertEq(handler.rounds(), flow.rounds());
            if (handler.eliminated() != 0) ++counts[0];
            if (live != 0x1c) ++counts[1];
            counts[2] += handler.misdeeds();
            counts[3] += handler.ownActs();
            counts[4] += handler.earlyScores();
            counts[5] += handler.wrongScores();
            counts[6] += handler.forgottenScores();
        }
        VM.assertGe(counts[0], 4, "campaigns with eliminated agents");
        VM.assertGe(counts[1], 1, "campaigns that a dishonest agent survives");
        VM.assertGe(counts[2], 8 * 3, "misdeeds");
        VM.assertGe(counts[3], 8 * 2, "acts of honest agents by themselves");
        VM.assertGe(counts[4], 2, "early scores");
        VM.assertGe(counts[5], 1, "early scores that do not open");
        VM.assertGe(counts[6], 2, "forgotten scores");
    }

    /// @dev One action, by a fair draw.
    function _call(uint256 random) internal {
        (uint256 action, uint256 a, uint256 b) = (random % 10, random >> 16 & 0xffff, random >> 32);
        if (action == 0) handler.misbehave(a, b, a & 2 == 0);
        else if (action == 1) handler.actItself(a);
        else if (action == 2) handler.act();
        else if (action == 3) handler.scoreEarly();
        else if (action == 4) handler.pass(b);
        else if (action == 5) handler.forgetToScore();
        else if (action == 6) handler.claim(a);
        else if (action == 7) handler.withdraw(a);
        else if (action == 8) handler.donate(b);
        else handler.sweep();
    }

    /// @dev Zero: all.
    function _auditorsOfAModel() internal pure virtual returns (uint8) {
        return 0;
    }

    /// @notice Only the handler's actions are called.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }
}

/// @notice The same with auditors that are drawn.
/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 128
/// forge-config: default.invariant.fail-on-revert = true
contract BlockFlowDrawnInvariantsTest is BlockFlowInvariantsTest {
    function _auditorsOfAModel() internal pure override returns (uint8) {
        return 2;
    }
}
