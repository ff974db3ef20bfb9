// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {BlockFlow} from "../src/BlockFlow.sol";
import {Experiment} from "./Experiment.sol";
import {VM, Vm} from "./Vm.sol";

/// @title BlockFlowHandler
/// @notice Lets the others do what the fuzzer asks for, and the honest agents what they must; keeps books from the logs.
/// @dev The agents 0 and 1 are a minority that does anything, the agents 2 to 4 are honest: before time goes on they have
///      acted. Calls that the contract refuses are wrong if there was no reason.
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

    /// @notice How often each kind of action had an effect.
    uint256 public rounds;
    uint256 public misdeeds;

    uint256[][] internal _scores;

    constructor() {
        BlockFlow.Terms memory terms = _terms(N);
        terms.rounds = 10;
        terms.stake = BOND / 11;
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

    /// @notice A dishonest agent does something that suits the stage, or not.
    function misbehave(uint256 who, uint256 how) external {
        who %= 2;
        BlockFlow.Stage stage = _stage();
        uint256 before = _acted();
        VM.recordLogs();
        if (stage == BlockFlow.Stage.Train) {
            flow.submit(_contributions(_set(who)));
        } else if (stage == BlockFlow.Stage.Retrieve) {
            flow.retrieve(_retrievals(_set(who), how));
        } else if (stage == BlockFlow.Stage.Commit) {
            // A commitment that can be opened, one of somebody else, or none.
            for (uint256 k; k < N; ++k) {
                _scores[who][k] = how % 3 == 0 ? (k < 2 ? ONE : 0) : uint256(keccak256(abi.encode(how, k))) % (ONE + 1);
            }
            if (how % 4 == 0) {
                BlockFlow.SignedCommitment[] memory copied = new BlockFlow.SignedCommitment[](1);
                copied[0] = _signedCommitment(who, flow.commitments(2));
                flow.commit(copied);
            } else {
                flow.commit(_commitments(_set(who), _scores));
            }
        } else if (stage == BlockFlow.Stage.Reveal) {
            flow.reveal(_openings(_set(who), _scores));
        }
        _book();
        if (_acted() != before || _stage() != stage) ++misdeeds;
    }

    /// @notice The honest agents that have not yet acted do, by a relay.
    function act() public {
        BlockFlow.Stage stage = _stage();
        uint256 todo = HONEST & _live() & ~_acted();
        VM.recordLogs();
        if (stage == BlockFlow.Stage.Train) flow.submit(_contributions(todo));
        else if (stage == BlockFlow.Stage.Retrieve) flow.retrieve(_retrievals(todo, _live()));
        else if (stage == BlockFlow.Stage.Commit) flow.commit(_commitments(todo, _scores));
        else if (stage == BlockFlow.Stage.Reveal) flow.reveal(_openings(todo, _scores));
        else if (stage == BlockFlow.Stage.Score) _scoreAll(_scores);
        _book();
    }

    /// @notice Time goes on; somebody ends the stage.
    function pass() external {
        BlockFlow.Stage stage = _stage();
        act();
        if (_stage() != stage || stage == BlockFlow.Stage.Finished) return;
        _warpPast();
        VM.recordLogs();
        flow.advance();
        _book();
    }

    /// @notice Nobody computes the scores in time.
    function forgetToScore() external {
        if (_stage() != BlockFlow.Stage.Score) return;
        _warpPast();
        VM.recordLogs();
        flow.advance();
        _book();
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

    function _book() private {
        Vm.Log[] memory logs = VM.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == BlockFlow.Eliminated.selector) eliminated |= abi.decode(logs[i].data, (uint256));
            if (logs[i].topics[0] != BlockFlow.Refunded.selector) continue;
            (uint256 live, uint256 pot, uint256 rest) = abi.decode(logs[i].data, (uint256, uint256, uint256));
            pots += pot;
            rests += _count(live) * rest;
            ++rounds;
        }
    }
}

/// @notice What holds whatever the minority does.
contract BlockFlowInvariantsTest {
    BlockFlowHandler internal handler;
    BlockFlow internal flow;

    function setUp() public {
        handler = new BlockFlowHandler();
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
        (BlockFlow.Stage stage,, uint104 live,) = flow.progress();
        uint256 bonds = 0;
        for (uint256 set = stage == BlockFlow.Stage.Finished ? 0 : live; set != 0; set &= set - 1) {
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
        (BlockFlow.Stage stage,,,) = flow.progress();
        if (stage == BlockFlow.Stage.Finished) VM.assertEq(handler.pots() + handler.rests(), handler.posted());
    }

    /// @dev Or the invariants would hold of a run in which nothing happens.
    function test_SuchACampaignGetsSomewhere() public {
        for (uint256 i; i < 100; ++i) {
            uint256 random = uint256(keccak256(abi.encode(i)));
            if (random % 8 == 0) handler.pass();
            else handler.misbehave(random / 8, random / 16);
        }
        VM.assertTrue(handler.eliminated() != 0);
        VM.assertTrue(handler.misdeeds() > 3);
        VM.assertTrue(handler.rounds() > 0);
    }

    /// @notice Only the handler's actions are called.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }
}
