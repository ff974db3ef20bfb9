// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title RewardToken
/// @notice A token for runs that have none of their own: the whole supply goes to whoever deploys it.
contract RewardToken is ERC20Permit {
    /// @param supply In the smallest unit (10^-18).
    constructor(uint256 supply) ERC20("Flower Chain Reward", "FCR") ERC20Permit("Flower Chain Reward") {
        _mint(msg.sender, supply);
    }
}
