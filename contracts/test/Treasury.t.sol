// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Treasury} from "../src/Treasury.sol";
import {Fixture} from "./Fixture.sol";
import {HookToken, OpenTreasury, SulkyToken} from "./Mocks.sol";
import {VM} from "./Vm.sol";

contract TreasuryTest is Fixture {
    OpenTreasury internal treasury;

    function setUp() public {
        treasury = new OpenTreasury(token);
        require(token.transfer(address(treasury), 1000));
    }

    function test_TransferFundsThePool() public {
        require(token.transfer(address(treasury), 234));
        VM.assertEq(treasury.pool(), 1234);
    }

    function test_CreditLeavesThePool() public {
        treasury.credit(ALICE, 400);
        VM.assertEq(treasury.pool(), 600);
        VM.assertEq(treasury.credits(ALICE), 400);
        VM.assertEq(treasury.totalCredits(), 400);
    }

    function test_CreditsAddUp() public {
        treasury.credit(ALICE, 400);
        treasury.credit(ALICE, 50);
        VM.assertEq(treasury.credits(ALICE), 450);
    }

    function test_CreditIsLogged() public {
        VM.expectEmit(address(treasury));
        emit Treasury.Credited(ALICE, 400);
        treasury.credit(ALICE, 400);
    }

    function test_WithdrawPaysAllCredits() public {
        treasury.credit(ALICE, 400);
        treasury.credit(BOB, 100);
        VM.expectEmit(address(treasury));
        emit Treasury.Withdrawn(ALICE, 400);
        treasury.withdraw(ALICE);
        VM.assertEq(token.balanceOf(ALICE), 400);
        VM.assertEq(treasury.credits(ALICE), 0);
        VM.assertEq(treasury.credits(BOB), 100);
        VM.assertEq(treasury.totalCredits(), 100);
    }

    function test_WithdrawLeavesThePoolAlone() public {
        treasury.credit(ALICE, 400);
        treasury.withdraw(ALICE);
        VM.assertEq(treasury.pool(), 600);
    }

    function test_WithdrawByAStrangerPaysTheCreditor() public {
        treasury.credit(ALICE, 400);
        VM.prank(STRANGER);
        treasury.withdraw(ALICE);
        VM.assertEq(token.balanceOf(ALICE), 400);
        VM.assertEq(token.balanceOf(STRANGER), 0);
    }

    function test_RefusesToWithdrawTwice() public {
        treasury.credit(ALICE, 400);
        treasury.withdraw(ALICE);
        VM.expectRevert(abi.encodeWithSelector(Treasury.NothingToWithdraw.selector, ALICE));
        treasury.withdraw(ALICE);
    }

    function test_RefusesToWithdrawNothing() public {
        VM.expectRevert(abi.encodeWithSelector(Treasury.NothingToWithdraw.selector, STRANGER));
        treasury.withdraw(STRANGER);
    }

    function test_EmptyPoolLeavesTheCredits() public {
        treasury.credit(ALICE, 400);
        VM.expectEmit(address(treasury));
        emit Treasury.PoolEmptied(BOB, 600);
        treasury.emptyPool(BOB);
        VM.assertEq(token.balanceOf(BOB), 600);
        VM.assertEq(treasury.pool(), 0);
        VM.assertEq(token.balanceOf(address(treasury)), 400);
    }

    function test_KeepsTheCreditWhenTheTokenSaysFalse() public {
        SulkyToken sulky = new SulkyToken(1000);
        treasury = new OpenTreasury(sulky);
        sulky.give(address(treasury), 1000);
        treasury.credit(ALICE, 400);
        VM.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(sulky)));
        treasury.withdraw(ALICE);
        VM.assertEq(treasury.credits(ALICE), 400);
    }

    /// @dev Before the balances change and after. Not even the credits of somebody else.
    function testFuzz_ReenteredWithdrawIsLockedOut(bool early) public {
        HookToken hook = new HookToken(1000);
        treasury = new OpenTreasury(hook);
        require(hook.transfer(address(treasury), 1000));
        treasury.credit(ALICE, 400);
        treasury.credit(BOB, 100);
        hook.arm(address(treasury), abi.encodeCall(Treasury.withdraw, BOB), early);
        treasury.withdraw(ALICE);
        VM.assertTrue(hook.tried());
        VM.assertFalse(hook.succeeded());
        VM.assertEq(hook.answer(), abi.encodePacked(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector));
        VM.assertEq(treasury.credits(BOB), 100);
    }

    /// @dev Before the balances change and after.
    function testFuzz_ReenteredWithdrawPaysOnce(bool early) public {
        HookToken hook = new HookToken(1000);
        treasury = new OpenTreasury(hook);
        require(hook.transfer(address(treasury), 1000));
        treasury.credit(ALICE, 400);
        hook.arm(address(treasury), abi.encodeCall(Treasury.withdraw, ALICE), early);
        treasury.withdraw(ALICE);
        VM.assertTrue(hook.tried());
        VM.assertFalse(hook.succeeded());
        VM.assertEq(hook.balanceOf(ALICE), 400);
        VM.assertEq(hook.balanceOf(address(treasury)), treasury.pool());
    }

    function testFuzz_BalanceIsPoolAndCredits(uint256 a, uint256 b, bool paid) public {
        a = _bound(a, 1, 999);
        b = _bound(b, 1, 1000 - a);
        treasury.credit(ALICE, a);
        treasury.credit(BOB, b);
        if (paid) treasury.withdraw(ALICE);
        VM.assertEq(token.balanceOf(address(treasury)), treasury.pool() + treasury.totalCredits());
        VM.assertEq(treasury.pool(), 1000 - a - b);
    }
}
