// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Bits} from "./Bits.sol";
import {Circle} from "./Circle.sol";
import {Peers} from "./Peers.sol";
import {Ranking} from "./Ranking.sol";

/// @title DataTrust
/// @notice papers/4: workers join a task with a deposit, and score each other's models in every round; the best are paid by
///         rank from the requester's reward, and who broke a rule loses its deposit to those who did not.
/// @dev The stages, how workers sign, retrieve, commit and reveal, are those of `Peers`; its owner is the requester, its
///      agents are the workers and its bonds the deposits. A row holds a score for each other worker of the task, also for
///      those that are out, cyclically from the one after its author on: nobody scores itself.
// It implements all of them: what `super` is called from misleads the detector.
// slither-disable-next-line unimplemented-functions
contract DataTrust is Peers {
    using Bits for uint256;

    /// @notice What is agreed before the task and enforced by this contract. Shares are in units of 1/65535.
    /// @param digest SHA-256 of the whole plan.
    /// @param model SHA-256 of the first model's canonical bytes.
    /// @param cid Its binary CIDv1.
    /// @param rounds N.
    /// @param quorum How many workers must post their deposit at least, two or more; else the task ends before it began.
    /// @param bond The deposit of each worker, in the token's smallest unit.
    /// @param reward D: of all rounds together.
    /// @param places k: how many workers are paid in a round, two or more.
    /// @param consistency The weight of consistency in a worker's quality; the median of its scores has the rest.
    /// @param tolerance How far from the median of the others' a score may be.
    /// @param floor The quality that a worker must have.
    /// @param patience After how many rounds below that, one after another, it is out.
    /// @param seconds_ How long each stage from `Enrol` to `Score` lasts at most.
    struct Terms {
        bytes32 digest;
        bytes32 model;
        bytes cid;
        uint32 rounds;
        uint8 quorum;
        uint96 bond;
        uint96 reward;
        uint8 places;
        uint16 consistency;
        uint16 tolerance;
        uint16 floor;
        uint8 patience;
        uint32[6] seconds_;
    }

    /// @notice A worker leaves the task, with its deposit, when this round is over.
    /// @param r With `vs`: its signature of Leave(uint32 round); of no account if the worker itself sends the transaction.
    struct SignedLeave {
        uint8 agent;
        bytes32 r;
        bytes32 vs;
    }

    bytes32 private constant LEAVE_TYPEHASH = keccak256("Leave(uint32 round)");

    /// @dev Workers in a word of `_records`: a lane of 32 bits holds the trail in 16 bits and the rounds below the floor in 8.
    uint256 private constant LANES = 8;

    /// @notice D: what the requester pays for all rounds together.
    uint96 public immutable reward;

    /// @notice k: how many workers are paid in a round.
    uint256 public immutable places;

    /// @notice The weight of consistency in a worker's quality.
    uint256 public immutable consistency;

    /// @notice How far from the median of the others' a score may be.
    uint256 public immutable tolerance;

    /// @notice The quality that a worker must have.
    uint256 public immutable floor;

    /// @notice After how many rounds below that, one after another, it is out.
    uint256 public immutable patience;

    /// @notice What of the reward is for the rounds that are not over.
    uint96 public unearned;

    /// @notice The workers that leave when this round is over.
    uint104 public leaving;

    mapping(uint256 word => uint256 lanes) private _records;

    /// @notice Worker `agent` leaves when the round is over.
    event Leaves(uint8 agent);

    /// @notice The workers in `out` left with their deposits when `round` was over.
    event Left(uint32 indexed round, uint256 out);

    /// @notice For each worker in `live` the median of what the others said of its model, and its quality.
    event Scored(uint32 indexed round, uint256 live, uint256[] medians, uint256[] qualities);

    /// @notice The workers in `far` gave a score too far from a median, those in `poor` were below the floor for too long.
    event Penalised(uint32 indexed round, uint256 far, uint256 poor);

    /// @notice The best workers of `round`, the first first, and what each earned.
    event Rewarded(uint32 indexed round, uint256[] ranking, uint256[] amounts);

    /// @notice Workers can join when the requester has sent the reward: so much is missing.
    error NotFunded(uint256 missing);

    /// @param accounts The workers that may join, in ascending order.
    constructor(IERC20 token_, Terms memory terms, address[] memory accounts)
        Peers(token_, Frame(terms.digest, terms.rounds, terms.quorum, terms.bond, terms.seconds_), accounts)
    {
        if (terms.quorum < 2 || terms.bond == 0 || terms.patience == 0 || terms.places < 2) revert BadTerms();
        if (terms.reward / terms.rounds < Ranking.smallest(terms.places)) revert BadTerms();
        if (terms.cid.length != CID_LENGTH) revert BadTerms();
        // One account may get it all.
        if (terms.reward + uint256(terms.bond) * accounts.length > type(uint96).max) revert BadTerms();
        reward = terms.reward;
        places = terms.places;
        consistency = terms.consistency;
        tolerance = terms.tolerance;
        floor = terms.floor;
        patience = terms.patience;
        unearned = terms.reward;
        held = terms.reward;
        emit ModelPublished(0, terms.model, terms.cid);
    }

    /// @notice Workers post their deposits, when the reward is there.
    function join(Entry[] calldata batch) public override {
        uint256 there = pool();
        if (there < held) revert NotFunded(held - there);
        super.join(batch);
    }

    /// @notice Workers say that they leave when this round is over. Until then they do what all do, and are paid as all are.
    function depart(SignedLeave[] calldata batch) external {
        Progress memory now_ = progress;
        if (now_.stage == Stage.Enrol || now_.stage == Stage.Finished) revert WrongStage(now_.stage);
        uint256 out = leaving;
        for (uint256 i; i < batch.length; ++i) {
            SignedLeave calldata item = batch[i];
            Fault fault = _standing(item.agent, now_.live, out);
            address account = agents[item.agent].account;
            if (fault == Fault.None && _mustSign(account)) {
                fault = _checkSignature(account, keccak256(abi.encode(LEAVE_TYPEHASH, round)), item.r, item.vs);
            }
            if (_reject(item.agent, fault)) continue;
            out = out.add(item.agent);
            emit Leaves(item.agent);
        }
        // There are at most `MAX_AGENTS`.
        // forge-lint: disable-next-line(unsafe-typecast)
        leaving = uint104(out);
    }

    /// @notice Ends a round: finds who is out, ranks the others, and pays the best. Also in the stage before, as soon as
    ///         somebody knows the scores of all workers that are left: to pass them on is to reveal them.
    /// @param rows The rows of these workers, one after another, in ascending order.
    /// @param salts Their salts. Together they decide between equal qualities, so that nobody could choose by them.
    /// @param lower For each worker of the task a big-endian uint16: the lower of the middle two of what the others said of its
    ///        model; anything for one that is out.
    /// @param upper The same with the upper; if an odd number of others is left, the same score.
    function score(bytes calldata rows, bytes32[] calldata salts, bytes calldata lower, bytes calldata upper) external {
        uint256 all = _scorable();
        (uint256[] memory medians, uint256[] memory furthest) =
            Circle.measure(_circle(), _scoresInARow(), all, rows, lower, upper);
        _checkOpenings(all, rows, salts);
        (uint256[] memory qualities, uint256 out) = _judge(all, medians, furthest);
        uint256 good = all ^ out;
        if (good == 0) return _finish(all, new uint256[](medians.length), 0, forfeited, bond);
        _forfeit(Stage.Score, out);
        (uint256[] memory amounts, uint256 earned) = _pay(all, good, qualities, keccak256(abi.encodePacked(salts)));
        _endRound(good, amounts, earned);
    }

    // --- a round's end ---

    /// @dev All workers of the task, out or not.
    function _circle() private view returns (uint256[] memory circle) {
        circle = new uint256[](agentCount);
        for (uint256 i; i < circle.length; ++i) {
            circle[i] = i;
        }
    }

    /// @dev All others score each model.
    function _drawnAuditors() internal pure override returns (uint256) {
        return 0;
    }

    /// @dev One for each other worker of the task.
    function _scoresInARow() internal view override returns (uint256) {
        return agentCount - 1;
    }

    /// @dev The qualities of the workers in `all`, and those that lose their deposits. Notes their trails.
    function _judge(uint256 all, uint256[] memory medians, uint256[] memory furthest)
        private
        returns (uint256[] memory qualities, uint256 out)
    {
        qualities = new uint256[](medians.length);
        uint256[] memory words = new uint256[]((agentCount + LANES - 1) / LANES);
        uint256 far = 0;
        uint256 poor = 0;
        uint256 agent = 0;
        for (uint256 i; i < medians.length; ++i) {
            agent = all.next(agent);
            uint256 shift = 32 * (agent % LANES);
            uint256 record = _records[agent / LANES] >> shift;
            (uint256 quality, uint256 trail) = Ranking.quality(medians[i], record & type(uint16).max, consistency);
            uint256 below = quality < floor ? (record >> 16 & type(uint8).max) + 1 : 0;
            if (below == patience) poor = poor.add(agent);
            if (furthest[i] > tolerance) far = far.add(agent);
            qualities[i] = quality;
            words[agent / LANES] |= (below << 16 | trail) << shift;
            ++agent;
        }
        for (uint256 i; i < words.length; ++i) {
            _records[i] = words[i];
        }
        out = far | poor;
        emit Scored(round, all, medians, qualities);
        if (out != 0) emit Penalised(round, far, poor);
    }

    /// @dev What each of the workers in `good` earns, and all of them. The qualities are of those in `all`.
    function _pay(uint256 all, uint256 good, uint256[] memory qualities, bytes32 lot)
        private
        returns (uint256[] memory amounts, uint256 earned)
    {
        uint256[] memory ranking = _rank(all, good, qualities, lot);
        uint256[] memory shares = Ranking.shares(_rewardOfRound(), ranking.length);
        amounts = new uint256[](good.count());
        for (uint256 i; i < ranking.length; ++i) {
            uint256 before = (uint256(1) << ranking[i]) - 1;
            amounts[(good & before).count()] = shares[i];
            earned += shares[i];
        }
        emit Rewarded(round, ranking, shares);
    }

    /// @dev The best of the workers in `good`, at most `places`.
    function _rank(uint256 all, uint256 good, uint256[] memory qualities, bytes32 lot)
        private
        view
        returns (uint256[] memory ranking)
    {
        uint256[] memory keys = new uint256[](good.count());
        uint256 agent = 0;
        uint256 filled = 0;
        for (uint256 i; i < qualities.length; ++i) {
            agent = all.next(agent);
            if (good.has(agent)) keys[filled++] = Ranking.key(qualities[i], lot, agent);
            ++agent;
        }
        ranking = Ranking.best(keys, places < filled ? places : filled);
        for (uint256 i; i < ranking.length; ++i) {
            ranking[i] = Ranking.agentOf(ranking[i]);
        }
    }

    /// @dev An equal part of what is left for all rounds that are not over.
    function _rewardOfRound() private view returns (uint96) {
        return unearned / (rounds - round);
    }

    /// @dev Nobody is paid for this round. What was lost in it is shared equally.
    function _endUnscored(uint256 all) internal override {
        _endRound(all, new uint256[](all.count()), 0);
    }

    /// @dev Gives the workers in `all` what they earned, and in proportion to it what others lost in this round, and lets those
    ///      go that want to. Begins the next round or ends the task.
    function _endRound(uint256 all, uint256[] memory amounts, uint256 earned) private {
        uint96 due = _rewardOfRound();
        unearned -= due;
        if (earned != due) held -= due - earned;
        uint256 pot = earned + forfeited;
        uint32 next = round + 1;
        if (next == rounds) return _finish(all, amounts, earned, pot, bond);
        _refund(all, amounts, earned, pot, 0);
        uint256 out = leaving & all;
        if (out != 0) {
            _refund(out, new uint256[](out.count()), 0, 0, bond);
            leaving = 0;
            emit Left(round, out);
        }
        forfeited = 0;
        // Else the task ends with this one.
        if (!_tooFew(all ^ out)) round = next;
        _open(Stage.Train, all ^ out);
    }

    /// @dev What is not earned then is the requester's again, by `sweep`.
    function _finish(uint256 all, uint256[] memory weights, uint256 sum, uint256 pot, uint256 rest) internal override {
        held -= unearned;
        unearned = 0;
        super._finish(all, weights, sum, pot, rest);
    }

    /// @dev Who is alone has nobody to judge it: the task ends.
    function _open(Stage stage, uint256 all) internal override {
        bool round_ = stage != Stage.Enrol && stage != Stage.Finished;
        if (round_ && _tooFew(all)) return _finish(all, new uint256[](all.count()), 0, forfeited, bond);
        super._open(stage, all);
    }

    /// @dev Whether there are not two workers in `set`.
    function _tooFew(uint256 set) private pure returns (bool) {
        unchecked {
            return set & (set - 1) == 0;
        }
    }

    /// @dev All of it: it is lost or kept whole.
    function _restOfBond() internal view override returns (uint256) {
        return bond;
    }
}
