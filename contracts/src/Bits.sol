// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Bits
/// @notice Sets of agents: bit i is set if agent i is in it.
library Bits {
    /// @notice Whether `agent` is in `set`.
    function has(uint256 set, uint256 agent) internal pure returns (bool) {
        return set >> agent & 1 == 1;
    }

    /// @notice `set` with `agent`.
    function add(uint256 set, uint256 agent) internal pure returns (uint256) {
        return set | uint256(1) << agent;
    }

    /// @notice How many agents are in `set`.
    function count(uint256 set) internal pure returns (uint256) {
        unchecked {
            // Sums of ever more neighbouring bits, side by side; there is room for 256 only in two bytes.
            set -= set >> 1 & type(uint256).max / 3;
            set = (set & type(uint256).max / 5) + (set >> 2 & type(uint256).max / 5);
            set = (set + (set >> 4)) & type(uint256).max / 17;
            set = (set + (set >> 8)) & type(uint256).max / 257;
            return set % type(uint16).max;
        }
    }

    /// @notice The first agent in `set` from `agent` on. There must be one.
    function next(uint256 set, uint256 agent) internal pure returns (uint256) {
        unchecked {
            while (!has(set, agent)) ++agent;
            return agent;
        }
    }
}
