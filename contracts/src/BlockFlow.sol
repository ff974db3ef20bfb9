// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Bits} from "./Bits.sol";
import {Circle} from "./Circle.sol";
import {Peers} from "./Peers.sol";
import {Scoring} from "./Scoring.sol";

/// @title BlockFlow
/// @notice papers/3: agents post a bond; in every round each trains a model, retrieves and audits those of all others,
///         commits to its scores, then reveals them; what each had at stake is shared in proportion to the overall scores.
/// @dev All agents that are left have staked equally, so that what remains of a bond is not stored.
contract BlockFlow is Peers {
    using Bits for uint256;

    /// @notice What is agreed before the experiment and enforced by this contract.
    /// @param digest SHA-256 of the whole plan.
    /// @param rounds R.
    /// @param quorum How many agents must post their bond at least; else the experiment ends before it began.
    /// @param bond What each agent posts, in the token's smallest unit.
    /// @param stake How much of it is shared by score in each round.
    /// @param seconds_ How long each stage from `Enrol` to `Score` lasts at most.
    /// @param auditors By how many agents each model is audited; they are drawn (section 6). Zero: by all.
    struct Terms {
        bytes32 digest;
        uint32 rounds;
        uint8 quorum;
        uint96 bond;
        uint96 stake;
        uint32[6] seconds_;
        uint8 auditors;
    }

    /// @notice How much of the bond is shared by score in each round.
    uint96 public immutable stake;

    /// @notice By how many agents each model is audited; zero if by all.
    uint256 public immutable auditors;

    /// @notice The overall scores of the agents in `live`, one for each.
    event Scored(uint32 indexed round, uint256 live, uint256[] overall);

    /// @param accounts The agents, in ascending order.
    constructor(IERC20 token_, Terms memory terms, address[] memory accounts)
        Peers(token_, Frame(terms.digest, terms.rounds, terms.quorum, terms.bond, terms.seconds_), accounts)
    {
        if (uint256(terms.stake) * terms.rounds > terms.bond) {
            revert BadTerms();
        }
        stake = terms.stake;
        auditors = terms.auditors;
    }

    /// @notice Stage 5: computes the overall scores by algorithm 1 and shares what is at stake. Also in the stage before, as
    ///         soon as somebody knows the scores of all agents that are left: to pass them on is to reveal them.
    /// @param rows The rows of these agents, one after another, in ascending order.
    /// @param salts Their salts.
    /// @param lower For each agent of the experiment a big-endian uint16: the median of its column, or for an even number of
    ///        auditors the lower of the middle two; anything for one that was eliminated.
    /// @param upper The same with the upper of the middle two; may be empty if all audit all and are an odd number.
    function score(bytes calldata rows, bytes32[] calldata salts, bytes calldata lower, bytes calldata upper) external {
        uint256 all = _scorable();
        uint256 length = _scoresInARow();
        (uint256[] memory overall, uint256 sum) = auditors == 0
            ? Scoring.score(all, length, rows, lower, upper)
            : Circle.score(Circle.draw(seed, drawn), length, all, rows, lower, upper);
        _checkOpenings(all, rows, salts);
        emit Scored(round, all, overall);
        _endRound(all, overall, sum);
    }

    /// @dev Stakes and lost bonds are shared equally.
    function _endUnscored(uint256 all) internal override {
        _endRound(all, new uint256[](all.count()), 0);
    }

    /// @dev Shares what the agents in `all` have at stake in this round by `weights`, and begins the next round or ends the
    ///      experiment.
    function _endRound(uint256 all, uint256[] memory weights, uint256 sum) private {
        uint256 pot = weights.length * stake + forfeited;
        uint32 next = round + 1;
        if (next == rounds) return _finish(all, weights, sum, pot, bond - uint256(stake) * next);
        _refund(all, weights, sum, pot, 0);
        round = next;
        forfeited = 0;
        _open(Stage.Train, all);
    }

    function _drawnAuditors() internal view override returns (uint256) {
        return auditors;
    }

    /// @dev One for each agent of the experiment; if auditors are drawn, for each that it was drawn for.
    function _scoresInARow() internal view override returns (uint256) {
        if (auditors == 0) return agentCount;
        uint256 others = uint256(drawn).count() - 1;
        return auditors < others ? auditors : others;
    }

    /// @dev The stakes of the rounds to come, and of this one.
    function _restOfBond() internal view override returns (uint256) {
        return bond - uint256(stake) * round;
    }
}
