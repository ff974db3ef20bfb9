// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Ranking
/// @notice papers/4: how good a worker was in a round, who was best, and what each place is worth.
/// @dev The same rules in Python: `flower_chain/rules/data_trust.py`. Scores, weights and qualities are in units of 1/65535;
///      every division rounds down.
library Ranking {
    /// @notice A perfect quality; the sum of all weights.
    uint256 internal constant ONE = type(uint16).max;

    /// @notice A worker's quality, and its trail, which is remembered.
    /// @param median Of its scores in this round.
    /// @param trail That of its scores in the rounds before; zero if there were none.
    /// @param weight That of consistency, which is how little the median fell below the trail.
    function quality(uint256 median, uint256 trail, uint256 weight)
        internal
        pure
        returns (uint256 found, uint256 newTrail)
    {
        unchecked {
            uint256 consistency = median < trail ? ONE - trail + median : ONE;
            found = (median * (ONE - weight) + consistency * weight) / ONE;
            newTrail = trail == 0 ? median : (trail + median) / 2;
        }
    }

    /// @notice What tells who was better: the larger. Among equals the hash decides.
    /// @param lot The hash of all salts of the round, which nobody knew before it could not be changed any more.
    /// @param agent The worker's number; `agentOf` finds it again.
    function key(uint256 quality_, bytes32 lot, uint256 agent) internal pure returns (uint256) {
        return quality_ << 240 | uint256(keccak256(abi.encode(lot, agent))) >> 24 << 8 | agent;
    }

    /// @notice The worker that `key_` was made of.
    function agentOf(uint256 key_) internal pure returns (uint256) {
        return key_ & type(uint8).max;
    }

    /// @notice The `places` largest of `keys`, the largest first. There must be as many.
    function best(uint256[] memory keys, uint256 places) internal pure returns (uint256[] memory top) {
        unchecked {
            top = new uint256[](places);
            for (uint256 i; i < keys.length; ++i) {
                uint256 j = i;
                if (i >= places) {
                    j = places - 1;
                    if (keys[i] < top[j]) continue;
                }
                for (; j > 0 && top[j - 1] < keys[i]; --j) {
                    top[j] = top[j - 1];
                }
                top[j] = keys[i];
            }
        }
    }

    /// @notice What each of the first `places` gets of `reward`: the first half of it, rounded up; the others of the other half
    ///         in the ratio of 1 for the last, 2 for the last but one, and so on, the second also what the divisions leave.
    /// @dev Together they are the reward, or its half if there is one place only. From the second on each gets more than the
    ///      next one if the reward is `smallest(places)` at least.
    function shares(uint256 reward, uint256 places) internal pure returns (uint256[] memory amounts) {
        amounts = new uint256[](places);
        uint256 half = reward / 2;
        amounts[0] = reward - half;
        if (places == 1) return amounts;
        uint256 rest = half;
        uint256 whole = places * (places - 1) / 2;
        for (uint256 i = 1; i < places; ++i) {
            // What halving leaves over is the first's.
            // slither-disable-next-line divide-before-multiply
            amounts[i] = half * (places - i) / whole;
            rest -= amounts[i];
        }
        amounts[1] += rest;
    }

    /// @notice The smallest reward of which so many places, two at least, can get shares that fall: their half is 1 + 2 + ...
    function smallest(uint256 places) internal pure returns (uint256) {
        return places * (places - 1);
    }
}
