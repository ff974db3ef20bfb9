// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Federation} from "../src/Federation.sol";
import {Refusal} from "../src/Refusal.sol";
import {Treasury} from "../src/Treasury.sol";

/// @notice A treasury whose inner functions anyone can call.
contract OpenTreasury is Treasury {
    constructor(IERC20 token_) Treasury(token_) {}

    function credit(address account, uint256 amount) external {
        _credit(account, amount);
    }

    function emptyPool(address account) external {
        _emptyPool(account);
    }
}

/// @notice The simplest scheme: a contribution says by its digest what is due, any 96-bit number; without data it is
///         worthless.
contract PayAsAsked is Federation {
    constructor(IERC20 token_, bytes32 planDigest_, uint64 patience_, Model memory first)
        Federation(token_, planDigest_, patience_, 0, first)
    {}

    function _judge(Contribution calldata c) internal pure override returns (Refusal reason, uint128 due) {
        if (c.dataCost == 0) return (Refusal.Worthless, 0);
        // forge-lint: disable-next-line(unsafe-typecast)
        return (Refusal.None, uint96(uint256(c.digest)));
    }
}

/// @notice A token that calls back in the middle of a transfer, before or after the balances change.
contract HookToken is ERC20 {
    address public target;
    bytes public data;
    bool public early;
    bool public tried;
    bool public succeeded;
    bytes public answer;

    constructor(uint256 supply) ERC20("Hook", "HOOK") {
        _mint(msg.sender, supply);
    }

    /// @notice The next transfer makes this call.
    function arm(address target_, bytes calldata data_, bool early_) external {
        (target, data, early, tried) = (target_, data_, early_, false);
    }

    function _update(address from, address to, uint256 value) internal override {
        if (early) _callBack();
        super._update(from, to, value);
        if (!early) _callBack();
    }

    function _callBack() private {
        if (target == address(0) || tried) return;
        tried = true;
        (succeeded, answer) = target.call(data);
    }
}

/// @notice A token that answers a transfer with false instead of reverting.
contract SulkyToken is ERC20 {
    constructor(uint256 supply) ERC20("Sulky", "SULK") {
        _mint(msg.sender, supply);
    }

    function transfer(address, uint256) public pure override returns (bool) {
        return false;
    }

    /// @notice How to fund somebody nevertheless.
    function give(address to, uint256 value) external {
        _transfer(msg.sender, to, value);
    }
}
