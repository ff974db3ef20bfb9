// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Bits} from "./Bits.sol";
import {Scoring} from "./Scoring.sol";

/// @title Circle
/// @notice papers/3 section 6: a few auditors for each model. The agents stand in a circle in an order that was drawn, and
///         each audits the models of those that follow it. Every agent has as many to audit, and the auditors of each
///         model are any of the others with the same probability.
/// @dev The same rules in Python: `flower_chain/rules/blockflow.py`. As in `Scoring` medians are given and verified by
///      counting, but one score at a time: there are few.
library Circle {
    using Bits for uint256;

    /// @dev Stands for the row of an agent that is out.
    uint256 private constant OUT = type(uint256).max;

    /// @dev What is known of the auditors.
    /// @param places For each agent in the circle the place of its row, if it has one.
    /// @param reach How many models each audits.
    /// @param furthest For each row the largest distance from a median so far.
    struct Audit {
        uint256[] places;
        uint256 reach;
        uint256[] furthest;
    }

    /// @notice A score that is said to be in the middle of what was said of the model of `agent` is not; or nobody is left
    ///         that said anything, and it is not zero.
    error NotTheMedianOf(uint256 agent);

    /// @notice The agents in `set` in an order drawn by `seed`. Each order of 104 agents is as likely as any other, to one part
    ///         in 2^242.
    function draw(bytes32 seed, uint256 set) internal pure returns (uint256[] memory order) {
        unchecked {
            order = new uint256[](set.count());
            uint256 agent = 0;
            for (uint256 i; i < order.length; ++i) {
                agent = set.next(agent);
                uint256 j = uint256(keccak256(abi.encode(seed, i))) % (i + 1);
                order[i] = order[j];
                order[j] = agent++;
            }
        }
    }

    /// @notice The overall scores p_k of the agents in `live`, ascending, and their sum: of what `measure` finds.
    function score(
        uint256[] memory circle,
        uint256 reach,
        uint256 live,
        bytes calldata rows,
        bytes calldata lower,
        bytes calldata upper
    ) internal pure returns (uint256[] memory overall, uint256 sum) {
        (uint256[] memory medians, uint256[] memory furthest) = measure(circle, reach, live, rows, lower, upper);
        return Scoring.share(medians, furthest);
    }

    /// @notice Of the agents in `live`, ascending, the median of what was said of each one's model, and how far from a median
    ///         each is at most in what it said of others. What was said of and by others than these does not count.
    /// @param circle In an order, all agents that were asked to audit each other.
    /// @param reach How many models each audits.
    /// @param rows One after another, of the agents in `live`, ascending: a score for each that follows, in order.
    /// @param lower A score for each agent ever enrolled: the lower of the middle two of what was said of its model.
    /// @param upper The same with the upper; where the number of auditors that are left is odd, the same score. Whatever is
    ///        read if one of the two is too short, it must be in the middle.
    function measure(
        uint256[] memory circle,
        uint256 reach,
        uint256 live,
        bytes calldata rows,
        bytes calldata lower,
        bytes calldata upper
    ) internal pure returns (uint256[] memory medians, uint256[] memory furthest) {
        unchecked {
            medians = new uint256[](live.count());
            furthest = new uint256[](medians.length);
            if (rows.length != 2 * reach * medians.length) revert Scoring.WrongShape();
            Audit memory audit = Audit(_places(circle, live), reach, furthest);
            for (uint256 i; i < circle.length; ++i) {
                uint256 agent = circle[i];
                if (!live.has(agent)) continue;
                (uint256 low, uint256 high) = (Scoring.scoreAt(lower, agent), Scoring.scoreAt(upper, agent));
                if (!_audit(audit, i, low, high, rows)) revert NotTheMedianOf(agent);
                medians[audit.places[i]] = (low + high) / 2;
            }
        }
    }

    /// @dev For each agent in the circle the place of its row, if it has one.
    function _places(uint256[] memory circle, uint256 live) private pure returns (uint256[] memory places) {
        unchecked {
            places = new uint256[](circle.length);
            for (uint256 i; i < places.length; ++i) {
                uint256 before = (uint256(1) << circle[i]) - 1;
                places[i] = live.has(circle[i]) ? (live & before).count() : OUT;
            }
        }
    }

    /// @dev Reads what was said of the model of the agent at `i`. Notes how far from the median each of its auditors is, and
    ///      tells whether `low` and `high` are the middle two: up to half of the scores are above the lower, and less than
    ///      half below it; and the other way round for the upper. One that nobody gave has all of them above or below it.
    function _audit(Audit memory audit, uint256 i, uint256 low, uint256 high, bytes calldata rows)
        private
        pure
        returns (bool)
    {
        unchecked {
            uint256[] memory places = audit.places;
            uint256[] memory furthest = audit.furthest;
            uint256 reach = audit.reach;
            uint256 median = (low + high) / 2;
            // How many there are, and are above and below the lower and the upper, in 16 bits each.
            uint256 counts = 0;
            for (uint256 j; j < reach; ++j) {
                uint256 place = places[i > j ? i - j - 1 : places.length + i - j - 1];
                if (place == OUT) continue;
                uint256 given = Scoring.scoreAt(rows, place * reach + j);
                counts += 1;
                if (given > low) counts += 1 << 16;
                else if (given < low) counts += 1 << 32;
                if (given > high) counts += 1 << 48;
                else if (given < high) counts += 1 << 64;
                uint256 distance = given < median ? median - given : given - median;
                if (distance > furthest[place]) furthest[place] = distance;
            }
            uint256 all = counts & 0xffff;
            if (all == 0) return low == 0 && high == 0;
            return 2 * (counts >> 16 & 0xffff) <= all && 2 * (counts >> 32 & 0xffff) < all
                && 2 * (counts >> 48 & 0xffff) < all && 2 * (counts >> 64) <= all;
        }
    }
}
