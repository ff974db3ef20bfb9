// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @title Treasury
/// @notice The money of a run: what is owed to each account, and the pool, which is all the rest.
/// @dev The pool is not stored but derived, so `balance == pool + totalCredits` can't be broken, and funding the pool is a
///      plain transfer of the token to this contract. Tokens that take a fee or rebase are not supported.
abstract contract Treasury is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice The token of all payments.
    IERC20 public immutable token;

    /// @notice What `account` can withdraw, in the token's smallest unit.
    mapping(address account => uint256 amount) public credits;

    /// @notice The sum of all credits.
    uint256 public totalCredits;

    /// @notice `account` can withdraw `amount` more.
    event Credited(address indexed account, uint256 amount);

    /// @notice `amount` left the contract for `account`.
    event Withdrawn(address indexed account, uint256 amount);

    /// @notice What was left of the pool, `amount`, went to `account`.
    event PoolEmptied(address indexed account, uint256 amount);

    /// @notice `account` has nothing to withdraw.
    error NothingToWithdraw(address account);

    constructor(IERC20 token_) {
        token = token_;
    }

    /// @notice What the next payments are made from.
    function pool() public view returns (uint256) {
        return token.balanceOf(address(this)) - totalCredits;
    }

    /// @notice Sends `account` all its credits. Anyone may call it and pay the gas: the money can go nowhere else.
    function withdraw(address account) external nonReentrant {
        uint256 amount = credits[account];
        if (amount == 0) revert NothingToWithdraw(account);
        credits[account] = 0;
        totalCredits -= amount;
        emit Withdrawn(account, amount);
        token.safeTransfer(account, amount);
    }

    /// @dev Moves `amount` from the pool to the credits of `account`. The caller has checked it against the pool.
    function _credit(address account, uint256 amount) internal {
        credits[account] += amount;
        // `pay` credits many: all but the first find this slot warm, which costs little.
        // slither-disable-next-line costly-loop
        totalCredits += amount;
        emit Credited(account, amount);
    }

    /// @dev Sends the whole pool to `account`.
    function _emptyPool(address account) internal {
        uint256 amount = pool();
        if (amount == 0) return;
        emit PoolEmptied(account, amount);
        token.safeTransfer(account, amount);
    }
}
