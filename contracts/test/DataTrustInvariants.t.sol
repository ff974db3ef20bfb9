// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {DataTrust} from "../src/DataTrust.sol";
import {Peers} from "../src/Peers.sol";
import {Task} from "./Task.sol";
import {VM, Vm} from "./Vm.sol";

/// @title DataTrustHandler
/// @notice Lets the others do what the fuzzer asks for, and the honest workers what they must; keeps books from the logs.
/// @dev The workers 0 and 1 do anything, the workers 2 to 5 are honest: each has three honest others and two that are not.
///      Before time goes on the honest have acted. No call may be refused.
contract DataTrustHandler is Task {
    uint256 internal constant N = 6;
    uint256 internal constant HONEST = 0x3c;

    /// @notice Ghosts, by the logs: who lost its deposit, who left, what was earned, and what was shared of it and of what was
    ///         lost, and given back.
    uint256 public eliminated;
    uint256 public left;
    uint256 public earned;
    uint256 public pots;
    uint256 public rests;

    /// @notice What came in beside reward and deposits, what went out, and what of it to the requester.
    uint256 public donated;
    uint256 public withdrawn;

    /// @notice In how many rounds the halves and shares were not the round's reward, or somebody was paid twice.
    uint256 public wrong;

    /// @notice How often each kind of action had an effect.
    uint256 public rounds;
    uint256 public misdeeds;
    uint256 public penalties;
    uint256 public forgottenScores;

    uint256[][] internal _scores;

    constructor() {
        _beginTask(N);
        _scores = _falling(N);
        for (uint256 k; k < N; ++k) {
            for (uint256 a; a < N; ++a) {
                _scores[a][k] += 700 * a;
            }
        }
    }

    /// @notice The contract under test.
    function task() external view returns (DataTrust) {
        return trust;
    }

    /// @notice The sum of what was refunded and is not yet claimed.
    function refunds() external view returns (uint256 sum) {
        for (uint256 i; i < N; ++i) {
            sum += _refund(i);
        }
    }

    /// @notice A dishonest worker does something that suits the stage, or not.
    function misbehave(uint256 who, uint256 how) public {
        who %= 2;
        Peers.Stage stage = _stage();
        uint256 before = _acted();
        if (stage == Peers.Stage.Commit && !_has(before, who)) {
            for (uint256 k; k < N; ++k) {
                uint256 lie = uint256(keccak256(abi.encode(how, k))) % (ONE + 1);
                _scores[who][k] = how % 3 == 0 ? lie : how % 3 == 1 ? _scores[3][k] : k < 2 ? ONE : 0;
            }
        }
        VM.recordLogs();
        _act(_set(who), how % 8 == 0 ? how : _live());
        if (_acted() != before || _stage() != stage) ++misdeeds;
    }

    /// @notice The honest workers that have not yet acted do.
    function act() public {
        VM.recordLogs();
        if (_stage() == Peers.Stage.Score) {
            uint256 due = trust.unearned() / (trust.rounds() - trust.round());
            _scoreAll(_scores);
            _book(due);
            return;
        }
        _act(HONEST & _live() & ~_acted(), _live());
    }

    /// @notice A worker says that it leaves; the honest ones only when the others are out, or they would not be enough.
    function depart(uint256 who) external {
        who = who % 12;
        if (who >= N) return;
        bool may = _stage() != Peers.Stage.Enrol && _stage() != Peers.Stage.Finished;
        if (may && (who < 2 || _live() & 3 == 0)) trust.depart(_leaves(_set(who)));
    }

    /// @notice Time goes on; somebody ends the stage.
    function pass(uint256 how) external {
        Peers.Stage stage = _stage();
        for (uint256 who; who < 2; ++who) {
            if (how >> 3 * who & 3 != 0) misbehave(who, how >> 6);
        }
        if (_stage() == stage) act();
        if (_stage() == stage) _end();
    }

    /// @notice Nobody computes the scores in time, one in three times.
    function forgetToScore(uint256 how) external {
        if (_stage() != Peers.Stage.Score || how % 3 != 0) return;
        ++forgottenScores;
        _end();
    }

    function claim(uint256 who) external {
        uint256[] memory one = new uint256[](1);
        one[0] = who % N;
        trust.claim(one);
    }

    function withdraw(uint256 who) external {
        address account = who % (N + 1) == N ? address(this) : _account(who % N);
        uint256 amount = trust.credits(account);
        if (amount == 0) return;
        withdrawn += amount;
        trust.withdraw(account);
    }

    function donate(uint256 amount) external {
        donated += amount % 1e6;
        require(token.transfer(address(trust), amount % 1e6));
    }

    function sweep() external {
        trust.sweep();
    }

    /// @dev Ends a stage whose time is over.
    function _end() private {
        if (_stage() == Peers.Stage.Finished) return;
        _warpPast();
        VM.recordLogs();
        trust.advance();
        _book(0);
    }

    /// @dev The workers in `set` do what the stage asks for.
    function _act(uint256 set, uint256 retrieved) private {
        Peers.Stage stage = _stage();
        if (stage == Peers.Stage.Train) trust.submit(_contributions(set));
        else if (stage == Peers.Stage.Retrieve) trust.retrieve(_retrievals(set, retrieved));
        else if (stage == Peers.Stage.Commit) trust.commit(_commitments(set, _scores));
        else if (stage == Peers.Stage.Reveal) trust.reveal(_openings(set, _scores));
        _book(0);
    }

    /// @param due The reward of the round that was scored.
    function _book(uint256 due) private {
        Vm.Log[] memory logs = VM.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            bytes32 kind = logs[i].topics[0];
            if (kind == Peers.Eliminated.selector) eliminated |= abi.decode(logs[i].data, (uint256));
            if (kind == DataTrust.Left.selector) left |= abi.decode(logs[i].data, (uint256));
            if (kind == DataTrust.Penalised.selector) ++penalties;
            if (kind == DataTrust.Rewarded.selector) _bookReward(logs[i].data, due);
            if (kind != Peers.Refunded.selector) continue;
            (uint256 live, uint256 pot, uint256 rest) = abi.decode(logs[i].data, (uint256, uint256, uint256));
            pots += pot;
            rests += _count(live) * rest;
        }
    }

    function _bookReward(bytes memory data, uint256 due) private {
        (uint256[] memory ranking, uint256[] memory amounts) = abi.decode(data, (uint256[], uint256[]));
        uint256 sum = 0;
        uint256 paid = 0;
        for (uint256 i; i < ranking.length; ++i) {
            sum += amounts[i];
            if (_has(paid, ranking[i])) ++wrong;
            paid |= _set(ranking[i]);
        }
        if (amounts[0] != due - due / 2 || (ranking.length > 1 && sum != due)) ++wrong;
        earned += sum;
        ++rounds;
    }
}

/// @notice What holds whatever the minority does.
/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 128
/// forge-config: default.invariant.fail-on-revert = true
contract DataTrustInvariantsTest {
    DataTrustHandler internal handler;
    DataTrust internal trust;

    function setUp() public {
        handler = new DataTrustHandler();
        trust = handler.task();
    }

    function invariant_TheBalanceIsPoolAndCredits() public view {
        uint256 balance = trust.token().balanceOf(address(trust));
        VM.assertEq(balance, trust.pool() + trust.totalCredits());
        VM.assertEq(balance, _paidIn() + handler.donated() - handler.withdrawn());
        VM.assertGe(trust.pool(), trust.held(), "held");
    }

    /// @dev What is held is refunds, the deposits of those in the run, what was forfeited, and the reward of the rounds to come.
    function invariant_WhatIsHeldIsRefundsDepositsForfeitsAndReward() public view {
        (Peers.Stage stage,, uint104 live,) = trust.progress();
        uint256 deposits = 0;
        for (uint256 set = stage == Peers.Stage.Finished ? 0 : live; set != 0; set &= set - 1) {
            deposits += trust.bond();
        }
        VM.assertEq(trust.held(), handler.refunds() + deposits + trust.forfeited() + trust.unearned());
    }

    function invariant_HalfAndSharesAreTheRewardOfTheRoundAndNobodyIsPaidTwice() public view {
        VM.assertEq(handler.wrong(), 0);
    }

    function invariant_NoHonestWorkerLosesItsDeposit() public view {
        VM.assertEq(handler.eliminated() & 0x3c, 0);
        (,, uint104 live,) = trust.progress();
        VM.assertEq((uint256(live) | handler.left()) & 0x3c, 0x3c);
    }

    /// @dev What went to workers in all is the deposits and what was earned: what one loses another gets.
    function invariant_WhenItIsOverDepositsAndEarningsWentToTheWorkers() public view {
        (Peers.Stage stage,,,) = trust.progress();
        if (stage != Peers.Stage.Finished) return;
        VM.assertEq(handler.pots() + handler.rests(), 6 * trust.bond() + handler.earned());
        VM.assertEq(trust.held(), handler.refunds());
    }

    /// @dev Or the invariants would hold of a run in which nothing happens. Counts over eight campaigns of random calls,
    ///      which are always the same; each of them finishes.
    function test_SuchACampaignGetsSomewhere() public {
        uint256[6] memory counts;
        for (uint256 seed; seed < 8; ++seed) {
            setUp();
            for (uint256 i; i < 128; ++i) {
                _call(uint256(keccak256(abi.encode(seed, i))));
            }
            (Peers.Stage stage,,,) = trust.progress();
            VM.assertEq(uint256(stage), uint256(Peers.Stage.Finished), "stage");
            if (handler.eliminated() != 0) ++counts[0];
            if (handler.left() != 0) ++counts[1];
            counts[2] += handler.misdeeds();
            counts[3] += handler.penalties();
            counts[4] += handler.forgottenScores();
            counts[5] += handler.rounds();
        }
        VM.assertGe(counts[0], 4, "campaigns in which somebody lost its deposit");
        VM.assertGe(counts[1], 1, "campaigns in which somebody left");
        VM.assertGe(counts[2], 8 * 2, "misdeeds");
        VM.assertGe(counts[3], 1, "penalties for scores");
        VM.assertGe(counts[4], 1, "forgotten scores");
        VM.assertGe(counts[5], 8, "rounds that were paid");
    }

    /// @dev One action, by a fair draw.
    function _call(uint256 random) internal {
        (uint256 action, uint256 a, uint256 b) = (random % 9, random >> 16 & 0xffff, random >> 32);
        if (action == 0) handler.misbehave(a, b);
        else if (action == 1) handler.act();
        else if (action == 2) handler.depart(a);
        else if (action == 3) handler.pass(b);
        else if (action == 4) handler.forgetToScore(b);
        else if (action == 5) handler.claim(a);
        else if (action == 6) handler.withdraw(a);
        else if (action == 7) handler.donate(b);
        else handler.sweep();
    }

    function _paidIn() internal view returns (uint256) {
        return trust.reward() + 6 * uint256(trust.bond());
    }

    /// @notice Only the handler's actions are called.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }
}
