// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Federation} from "../src/Federation.sol";
import {Refusal} from "../src/Refusal.sol";
import {Treasury} from "../src/Treasury.sol";
import {Fixture} from "./Fixture.sol";
import {HookToken, PayAsAsked} from "./Mocks.sol";
import {VM, Vm} from "./Vm.sol";

/// @notice Roles, versions, submissions and payments, under a scheme that pays whatever the contribution's digest says.
///         This test is the owner; Alice and Bob are enrolled, Carol is not.
contract FederationTest is Fixture {
    uint256 internal constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;
    uint256 internal constant FUNDS = 1e6;

    PayAsAsked internal federation;

    function setUp() public {
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        require(token.transfer(address(federation), FUNDS));
        federation.enrol(_one(ALICE));
        federation.enrol(_one(BOB));
    }

    // Construction.

    function test_DeployerIsTheOwner() public view {
        VM.assertEq(federation.owner(), address(this));
    }

    function test_KeepsThePlan() public view {
        VM.assertEq(federation.planDigest(), PLAN);
        VM.assertEq(federation.patience(), PATIENCE);
        VM.assertEq(address(federation.token()), address(token));
    }

    function test_PublishesTheFirstModel() public {
        // The address of the next deployment is not known to this test: the log is read instead of expected.
        VM.recordLogs();
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        Vm.Log[] memory logs = VM.getRecordedLogs();
        VM.assertEq(logs.length, 1);
        VM.assertEq(logs[0].topics[0], Federation.ModelPublished.selector);
        VM.assertEq(logs[0].topics[1], bytes32(0));
        _assertModel(0, _model("model 0"));
    }

    function test_NamesItsDomain() public view {
        (, string memory name, string memory version, uint256 chainId, address verifying,,) = federation.eip712Domain();
        VM.assertEq(bytes(name), "flower-chain");
        VM.assertEq(bytes(version), "1");
        VM.assertEq(chainId, block.chainid);
        VM.assertEq(verifying, address(federation));
    }

    // Enrolment.

    function test_OwnerEnrols() public {
        VM.expectEmit(address(federation));
        emit Federation.Enrolled(CAROL);
        federation.enrol(_one(CAROL));
        (bool enrolled, uint32 nextVersion, uint128 due,) = federation.devices(CAROL);
        VM.assertTrue(enrolled);
        VM.assertEq(nextVersion, 0);
        VM.assertEq(due, 0);
    }

    function test_OnlyOwnerEnrols() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.enrol(_one(CAROL));
    }

    function test_OwnerIsNoDevice() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotADevice.selector, address(this)));
        federation.enrol(_one(address(this)));
    }

    function test_ZeroAddressIsNoDevice() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotADevice.selector, address(0)));
        federation.enrol(_one(address(0)));
    }

    function test_RefusesToEnrolTwice() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.AlreadyEnrolled.selector, ALICE));
        federation.enrol(_one(ALICE));
    }

    function test_RefusesToEnrolTwiceAtOnce() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.AlreadyEnrolled.selector, CAROL));
        federation.enrol(_two(CAROL, CAROL));
    }

    function test_EnrolmentKeepsWhatIsDue() public {
        _submit(ALICE_KEY, 500);
        federation.enrol(_one(CAROL));
        VM.assertEq(_due(federation, ALICE), 500);
    }

    // What is signed.

    function testFuzz_HashIsEip712(Federation.Contribution memory c) public view {
        bytes32 domain = _domain("flower-chain", "1", block.chainid, address(federation));
        VM.assertEq(federation.hashContribution(c), _hash(domain, c));
    }

    function test_HashFollowsTheChain() public {
        VM.chainId(4242);
        Federation.Contribution memory c = _asking(ALICE, 500);
        bytes32 domain = _domain("flower-chain", "1", 4242, address(federation));
        VM.assertEq(federation.hashContribution(c), _hash(domain, c));
    }

    // Accepted contributions.

    function test_AcceptsASignedContribution() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        _expectAccepted(federation, item, 500);
        federation.submit(_one(item));
        (bool enrolled, uint32 nextVersion, uint128 due,) = federation.devices(ALICE);
        VM.assertTrue(enrolled);
        VM.assertEq(nextVersion, 1);
        VM.assertEq(due, 500);
    }

    function test_DeviceSendsItsOwn() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        _expectAccepted(federation, item, 500);
        VM.prank(ALICE);
        federation.submit(_one(item));
        VM.assertEq(_due(federation, ALICE), 500);
        _assertRejected(item, Refusal.SecondContribution);
    }

    function test_DeviceRelaysNobody() public {
        Federation.SignedContribution[] memory batch = new Federation.SignedContribution[](2);
        (batch[0], batch[1]) = (_asked(ALICE_KEY, 500), _asked(BOB_KEY, 70));
        VM.prank(ALICE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotYours.selector, BOB));
        federation.submit(batch);
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function test_StrangerSubmitsNothing() public {
        Federation.SignedContribution[] memory batch = _one(_asked(CAROL_KEY, 500));
        VM.expectRevert(abi.encodeWithSelector(Federation.NotAMember.selector, CAROL));
        VM.prank(CAROL);
        federation.submit(batch);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotAMember.selector, CAROL));
        VM.prank(CAROL);
        federation.submit(new Federation.SignedContribution[](0));
    }

    /// @dev The owner finds out by the signature, as with any other.
    function test_DeviceCannotForgeItsOwn() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        item.contribution.dataCost += 1;
        _expectRejected(federation, item, Refusal.BadSignature);
        VM.prank(ALICE);
        federation.submit(_one(item));
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function test_AcceptsAnEmptyBatch() public {
        federation.submit(new Federation.SignedContribution[](0));
        (uint128 due, uint64 dueSince,,,) = federation.round();
        VM.assertEq(due, 0);
        VM.assertEq(dueSince, 0);
    }

    function test_RoundAddsUpWhatIsDue() public {
        uint256 start = VM.getBlockTimestamp();
        _submit(ALICE_KEY, 500);
        VM.warp(start + 5);
        _submit(BOB_KEY, 70);
        (uint128 due, uint64 dueSince, bool closed, uint128 paid, uint256 pool) = federation.round();
        VM.assertEq(due, 570);
        VM.assertEq(dueSince, start);
        VM.assertFalse(closed);
        VM.assertEq(paid, 0);
        VM.assertEq(pool, 0);
    }

    function test_AcceptsAFreeContribution() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 0);
        _expectAccepted(federation, item, 0);
        federation.submit(_one(item));
        _assertRejected(_asked(ALICE_KEY, 500), Refusal.SecondContribution);
    }

    function test_AcceptsTheSameDeviceInTheNextVersion() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _advance();
        _submit(ALICE_KEY, 70);
        VM.assertEq(_due(federation, ALICE), 70);
    }

    function test_AcceptsADeviceThatSkippedVersions() public {
        _advance();
        _advance();
        _submit(ALICE_KEY, 70);
        VM.assertEq(_due(federation, ALICE), 70);
    }

    // Refused by the contract.

    function test_RefusesForgedSignature() public {
        _assertRejected(_sign(BOB_KEY, federation, _asking(ALICE, 500)), Refusal.BadSignature);
    }

    function test_RefusesTamperedContribution() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        item.contribution.dataCost += 1;
        _assertRejected(item, Refusal.BadSignature);
    }

    function test_RefusesSignatureForAnotherContract() public {
        bytes32 domain = _domain("flower-chain", "1", block.chainid, address(this));
        _assertRejected(_sign(ALICE_KEY, domain, _asking(ALICE, 500)), Refusal.BadSignature);
    }

    function test_RefusesSignatureForAnotherChain() public {
        bytes32 domain = _domain("flower-chain", "1", block.chainid + 1, address(federation));
        _assertRejected(_sign(ALICE_KEY, domain, _asking(ALICE, 500)), Refusal.BadSignature);
    }

    function test_RefusesSignatureForAnotherApplication() public {
        bytes32 domain = _domain("flower", "1", block.chainid, address(federation));
        _assertRejected(_sign(ALICE_KEY, domain, _asking(ALICE, 500)), Refusal.BadSignature);
    }

    function test_RefusesSignatureForAnotherDomainVersion() public {
        bytes32 domain = _domain("flower-chain", "2", block.chainid, address(federation));
        _assertRejected(_sign(ALICE_KEY, domain, _asking(ALICE, 500)), Refusal.BadSignature);
    }

    function test_RefusesSignatureOfThePlainHash() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        (item.r, item.vs) = VM.signCompact(ALICE_KEY, keccak256(abi.encode(item.contribution)));
        _assertRejected(item, Refusal.BadSignature);
    }

    /// @dev The compact form leaves one bit for the parity, but s can still exceed half the order of the curve.
    function test_RefusesHighS() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        item.vs = bytes32(HALF_ORDER + 1);
        _assertRejected(item, Refusal.BadSignature);
    }

    function test_RefusesTheOtherParity() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        item.vs ^= bytes32(uint256(1) << 255);
        _assertRejected(item, Refusal.BadSignature);
    }

    /// @dev Recovery fails and gives the zero address, which must not pass for the device.
    function test_RefusesTheZeroAddress() public {
        _assertRejected(Federation.SignedContribution(_asking(address(0), 500), 0, 0), Refusal.BadSignature);
    }

    function testFuzz_RefusesRandomSignature(bytes32 r, bytes32 vs) public {
        _assertRejected(Federation.SignedContribution(_asking(ALICE, 500), r, vs), Refusal.BadSignature);
    }

    function test_RefusesUnenrolled() public {
        _assertRejected(_asked(CAROL_KEY, 500), Refusal.NotEnrolled);
    }

    function test_RefusesStaleVersion() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        _advance();
        _assertRejected(item, Refusal.StaleVersion);
    }

    function test_RefusesFutureVersion() public {
        Federation.Contribution memory c = _asking(ALICE, 500);
        c.version = 1;
        _assertRejected(_sign(ALICE_KEY, federation, c), Refusal.FutureVersion);
    }

    function test_RefusesAfterTheVersionClosed() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _assertRejected(_asked(BOB_KEY, 500), Refusal.VersionClosed);
    }

    function test_RefusesSecondContribution() public {
        _submit(ALICE_KEY, 500);
        _assertRejected(_asked(ALICE_KEY, 70), Refusal.SecondContribution);
        VM.assertEq(_due(federation, ALICE), 500);
    }

    function test_RefusesSecondContributionInOneBatch() public {
        Federation.SignedContribution[] memory batch = new Federation.SignedContribution[](2);
        batch[0] = _asked(ALICE_KEY, 500);
        batch[1] = batch[0];
        _expectAccepted(federation, batch[0], 500);
        _expectRejected(federation, batch[1], Refusal.SecondContribution);
        federation.submit(batch);
        VM.assertEq(_due(federation, ALICE), 500);
    }

    function test_RefusesWhatTheSchemeRefuses() public {
        Federation.Contribution memory c = _asking(ALICE, 500);
        c.dataCost = 0;
        _assertRejected(_sign(ALICE_KEY, federation, c), Refusal.Worthless);
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function test_WorthlessUsesUpTheOneContribution() public {
        Federation.Contribution memory c = _asking(ALICE, 500);
        c.dataCost = 0;
        federation.submit(_one(_sign(ALICE_KEY, federation, c)));
        _assertRejected(_asked(ALICE_KEY, 500), Refusal.SecondContribution);
    }

    function test_ForgeryDoesNotUseUpTheVictimsContribution() public {
        federation.submit(_one(_sign(BOB_KEY, federation, _asking(ALICE, 70))));
        _submit(ALICE_KEY, 500);
        VM.assertEq(_due(federation, ALICE), 500);
    }

    function test_StaleReplayDoesNotUseUpTheOneContribution() public {
        Federation.SignedContribution memory old = _asked(ALICE_KEY, 70);
        _advance();
        federation.submit(_one(old));
        _submit(ALICE_KEY, 500);
        VM.assertEq(_due(federation, ALICE), 500);
    }

    function test_RefusalsDoNotMoveTheDeadline() public {
        _submit(ALICE_KEY, 500);
        (, uint64 before,,,) = federation.round();
        VM.warp(block.timestamp + 5);
        federation.submit(_one(_asked(ALICE_KEY, 500)));
        (, uint64 dueSince,,,) = federation.round();
        VM.assertEq(dueSince, before);
    }

    /// @dev Every kind of bad item between two good ones.
    function test_BadItemsDoNotFailTheBatch() public {
        Federation.SignedContribution[] memory batch = new Federation.SignedContribution[](6);
        batch[0] = _asked(ALICE_KEY, 500);
        batch[1] = _sign(ALICE_KEY, federation, _asking(BOB, 70));
        batch[2] = _asked(CAROL_KEY, 500);
        batch[3] = _asked(ALICE_KEY, 500);
        batch[4] = Federation.SignedContribution(_asking(address(0), 500), 0, 0);
        batch[5] = _asked(BOB_KEY, 30);
        _expectAccepted(federation, batch[0], 500);
        _expectRejected(federation, batch[1], Refusal.BadSignature);
        _expectRejected(federation, batch[2], Refusal.NotEnrolled);
        _expectRejected(federation, batch[3], Refusal.SecondContribution);
        _expectRejected(federation, batch[4], Refusal.BadSignature);
        _expectAccepted(federation, batch[5], 30);
        federation.submit(batch);
        (uint128 due,,,,) = federation.round();
        VM.assertEq(due, 530);
    }

    /// @dev Whatever a device signs, a good contribution after it is recorded.
    function testFuzz_NoContentFailsTheBatch(Federation.Contribution memory c, bool signed) public {
        c.device = ALICE;
        Federation.SignedContribution[] memory batch = new Federation.SignedContribution[](2);
        batch[0] = _sign(signed ? ALICE_KEY : CAROL_KEY, federation, c);
        batch[1] = _asked(BOB_KEY, 500);
        federation.submit(batch);
        VM.assertEq(_due(federation, BOB), 500);
    }

    // The close.

    function test_OwnerCloses() public {
        _submit(ALICE_KEY, 500);
        VM.expectEmit(address(federation));
        emit Federation.Closed(0);
        federation.close();
        (uint128 due,, bool closed, uint128 paid, uint256 pool) = federation.round();
        VM.assertEq(due, 500);
        VM.assertTrue(closed);
        VM.assertEq(paid, 0);
        VM.assertEq(pool, 0);
    }

    function test_OnlyOwnerCloses() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.close();
    }

    function test_ClosesOnlyOnce() public {
        federation.close();
        VM.recordLogs();
        federation.close();
        VM.assertEq(VM.getRecordedLogs().length, 0);
    }

    function test_CloseEndsTheSubmissions() public {
        federation.close();
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        _assertRejected(item, Refusal.VersionClosed);
        _expectRejected(federation, item, Refusal.VersionClosed);
        VM.prank(ALICE);
        federation.submit(_one(item));
    }

    function test_CloseIsNotInheritedByTheNextVersion() public {
        federation.close();
        _advance();
        _submit(ALICE_KEY, 70);
        VM.assertEq(_due(federation, ALICE), 70);
    }

    function test_RefusesAfterTheClose() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.close();
        federation.refuse(ALICE, Refusal.NotStored);
        _assertPays(_two(ALICE, BOB), 1);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_CloseDoesNotPushTheDeadline() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE);
        federation.close();
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 500);
    }

    function test_FinishStopsTheClose() public {
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.close();
    }

    /// @dev Every device can put off the end of the run once, until the owner closes the last version.
    function test_CloseLetsTheRunFinish() public {
        Federation.SignedContribution[] memory batch = _one(_asked(ALICE_KEY, 500));
        VM.prank(ALICE);
        federation.submit(batch);
        VM.expectRevert(abi.encodeWithSelector(Federation.VersionOpen.selector, 0));
        federation.finish();

        federation.close();
        federation.refuse(ALICE, Refusal.NotStored);
        _assertRejected(_asked(BOB_KEY, 70), Refusal.VersionClosed);
        federation.finish();
        VM.assertTrue(federation.finished());
    }

    // Refused by the owner.

    function test_RefuseTakesBackWhatWasDue() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        VM.expectEmit(address(federation));
        emit Federation.Refused(ALICE, 0, Refusal.FalseEvidence);
        federation.refuse(ALICE, Refusal.FalseEvidence);
        (uint128 due,,,,) = federation.round();
        VM.assertEq(due, 70);
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function test_RefusedIsNotPaid() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.refuse(ALICE, Refusal.NotStored);
        _assertPays(_two(ALICE, BOB), 1);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_RefusedCannotTryAgain() public {
        _submit(ALICE_KEY, 500);
        federation.refuse(ALICE, Refusal.NotStored);
        _assertRejected(_asked(ALICE_KEY, 500), Refusal.SecondContribution);
    }

    /// @dev What it sent may be relayed after the owner has looked at it.
    function test_RefusedInAdvanceCannotContribute() public {
        federation.refuse(ALICE, Refusal.FalseEvidence);
        _assertRejected(_asked(ALICE_KEY, 500), Refusal.SecondContribution);
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function test_RefusedCanContributeToTheNextVersion() public {
        federation.refuse(ALICE, Refusal.NoAnswer);
        _advance();
        _submit(ALICE_KEY, 70);
        VM.assertEq(_due(federation, ALICE), 70);
    }

    function test_RefusalConcernsNoOtherDevice() public {
        federation.refuse(ALICE, Refusal.NoAnswer);
        _submit(BOB_KEY, 70);
        VM.assertEq(_due(federation, BOB), 70);
    }

    function test_RefusalEnrolsNobody() public {
        federation.refuse(CAROL, Refusal.NoAnswer);
        (bool enrolled, uint32 nextVersion,,) = federation.devices(CAROL);
        VM.assertFalse(enrolled);
        VM.assertEq(nextVersion, 0);
    }

    function test_RefusesAFreeContribution() public {
        _submit(ALICE_KEY, 0);
        _submit(BOB_KEY, 70);
        federation.refuse(ALICE, Refusal.NotStored);
        (uint128 due,,,,) = federation.round();
        VM.assertEq(due, 70);
    }

    function test_RefusingAllLetsTheRunGoOn() public {
        _submit(ALICE_KEY, 500);
        federation.refuse(ALICE, Refusal.NotStored);
        _advance();
        VM.assertEq(federation.version(), 1);
    }

    function test_RecordsThatADeviceSentNothing() public {
        VM.expectEmit(address(federation));
        emit Federation.Refused(ALICE, 0, Refusal.NoAnswer);
        federation.refuse(ALICE, Refusal.NoAnswer);
    }

    function test_RecordsAnUnknownNode() public {
        VM.expectEmit(address(federation));
        emit Federation.Refused(address(0), 0, Refusal.DeviceError);
        federation.refuse(address(0), Refusal.DeviceError);
    }

    function test_OnlyOwnerRefuses() public {
        _submit(ALICE_KEY, 500);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, BOB));
        VM.prank(BOB);
        federation.refuse(ALICE, Refusal.NotStored);
    }

    function testFuzz_OwnerGivesOnlyItsOwnReasons(uint8 value) public {
        Refusal reason = Refusal(_bound(value, 0, uint256(type(Refusal).max)));
        if (reason <= Refusal.Worthless || reason >= Refusal.OverBudget) {
            VM.expectRevert(abi.encodeWithSelector(Federation.NotAFinding.selector, reason));
        } else {
            VM.expectEmit(address(federation));
            emit Federation.Refused(ALICE, 0, reason);
        }
        federation.refuse(ALICE, reason);
    }

    function test_RefusesToRefuseOncePaymentsBegan() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(BOB));
        VM.expectRevert(abi.encodeWithSelector(Federation.PaymentsBegun.selector, 0));
        federation.refuse(ALICE, Refusal.NotStored);
    }

    /// @dev Otherwise the record would say of one contribution that it was paid and refused.
    function test_RefusesToRefuseThePaid() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.PaymentsBegun.selector, 0));
        federation.refuse(ALICE, Refusal.NotStored);
    }

    function test_AdvancesOnlyAsJudged() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.NotAsJudged.selector, 0, 500, 570));
        federation.advance(SEED, _model("model 1"), 570);
    }

    function test_ReopensWhileNothingIsDue() public {
        federation.close();
        VM.expectEmit(address(federation));
        emit Federation.Reopened(0);
        federation.reopen();
        federation.reopen();
        _submit(ALICE_KEY, 500);
        VM.assertEq(_due(federation, ALICE), 500);
        VM.expectRevert(abi.encodeWithSelector(Federation.VersionOpen.selector, 0));
        federation.reopen();
    }

    function test_OnlyTheOwnerReopens() public {
        federation.close();
        VM.prank(ALICE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        federation.reopen();
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.reopen();
    }

    function test_LeavesOutThePaid() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectEmit(address(federation));
        emit Federation.LeftOut(ALICE, 0, Refusal.NotStored);
        federation.leaveOut(ALICE, Refusal.NotStored);
        VM.assertEq(federation.credits(ALICE), 500);
        _advance();
    }

    function test_LeavesOutNobodyWhoIsNotPaid() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotPaid.selector, ALICE));
        federation.leaveOut(ALICE, Refusal.NotStored);
        federation.pay(_one(BOB));
        VM.expectRevert(abi.encodeWithSelector(Federation.NotPaid.selector, ALICE));
        federation.leaveOut(ALICE, Refusal.NotStored);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotPaid.selector, STRANGER));
        federation.leaveOut(STRANGER, Refusal.NotStored);
    }

    function test_LeavesOutForItsOwnReasonsOnly() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.NotAFinding.selector, Refusal.Worthless));
        federation.leaveOut(ALICE, Refusal.Worthless);
        VM.prank(ALICE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        federation.leaveOut(ALICE, Refusal.NotStored);
    }

    function test_RecordsSilenceOncePaymentsBegan() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectEmit(address(federation));
        emit Federation.Refused(BOB, 0, Refusal.NoAnswer);
        federation.refuse(BOB, Refusal.NoAnswer);
        federation.refuse(address(0), Refusal.DeviceError);
        _advance();
        VM.assertEq(federation.version(), 1);
    }

    /// @dev Even if nothing could be credited: the shares are settled.
    function test_RefusesToRefuseOnceAnEmptyPoolPaid() public {
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        federation.enrol(_two(ALICE, BOB));
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(BOB));
        VM.expectRevert(abi.encodeWithSelector(Federation.PaymentsBegun.selector, 0));
        federation.refuse(ALICE, Refusal.NotStored);
    }

    function test_RefusesUntilSomebodyIsPaid() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        _assertPays(_one(STRANGER), 0);
        federation.refuse(ALICE, Refusal.NotStored);
        _assertPays(_two(ALICE, BOB), 1);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 70);
    }

    // Payments.

    function test_PaysExactlyWhatIsDue() public {
        _submit(ALICE_KEY, 500);
        VM.expectEmit(address(federation));
        emit Federation.Paid(ALICE, 0, 500);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.pool(), FUNDS - 500);
    }

    function test_PaymentCanBeWithdrawn() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.prank(STRANGER);
        federation.withdraw(ALICE);
        VM.assertEq(token.balanceOf(ALICE), 500);
    }

    function test_PaymentsOfVersionsAddUp() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _advance();
        _submit(ALICE_KEY, 70);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 570);
    }

    function test_PayClosesTheVersion() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(ALICE));
        (uint128 due,, bool closed, uint128 paid, uint256 pool) = federation.round();
        VM.assertEq(due, 570);
        VM.assertTrue(closed);
        VM.assertEq(paid, 500);
        VM.assertEq(pool, FUNDS);
    }

    function test_PaysInParts() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(ALICE));
        federation.pay(_one(BOB));
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_PaysOnlyOnce() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _assertPays(_one(ALICE), 0);
        _assertPaid(500);
        VM.assertEq(federation.credits(ALICE), 500);
    }

    function test_PaysOnlyOnceInOneCall() public {
        _submit(ALICE_KEY, 500);
        _assertPays(_two(ALICE, ALICE), 1);
        _assertPaid(500);
        VM.assertEq(federation.credits(ALICE), 500);
    }

    function test_PassesOverWhoSentNothing() public {
        _submit(ALICE_KEY, 500);
        _assertPays(_two(BOB, ALICE), 1);
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.credits(BOB), 0);
    }

    function test_PassesOverWhoIsNotEnrolled() public {
        _submit(ALICE_KEY, 500);
        _assertPays(_two(STRANGER, ALICE), 1);
        VM.assertEq(federation.credits(STRANGER), 0);
    }

    function test_FreeContributionDoesNotBlockTheOthers() public {
        _submit(ALICE_KEY, 0);
        _submit(BOB_KEY, 70);
        _assertPays(_two(ALICE, BOB), 1);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_FreeContributionsAloneLetTheRunGoOn() public {
        _submit(ALICE_KEY, 0);
        federation.pay(_one(ALICE));
        _advance();
        VM.assertEq(federation.version(), 1);
    }

    function test_PayClosesAVersionWithoutDues() public {
        VM.expectEmit(address(federation));
        emit Federation.Closed(0);
        federation.pay(new address[](0));
        _assertRejected(_asked(ALICE_KEY, 500), Refusal.VersionClosed);
    }

    function test_PaysProRataWhenThePoolIsShort() public {
        _submit(ALICE_KEY, 3e6);
        _submit(BOB_KEY, 1e6);
        VM.expectEmit(address(federation));
        emit Federation.PoolShort(0, 4e6, FUNDS);
        federation.pay(_two(ALICE, BOB));
        VM.assertEq(federation.credits(ALICE), 75e4);
        VM.assertEq(federation.credits(BOB), 25e4);
        VM.assertEq(federation.pool(), 0);
    }

    function test_ShortPoolPaysTheSameInParts() public {
        _submit(ALICE_KEY, 3e6);
        _submit(BOB_KEY, 1e6);
        federation.pay(_one(ALICE));
        federation.withdraw(ALICE);
        federation.pay(_one(BOB));
        VM.assertEq(token.balanceOf(ALICE), 75e4);
        VM.assertEq(federation.credits(BOB), 25e4);
    }

    /// @dev A call that pays nobody settles nothing: neither what the pool holds nor what is due.
    function test_FirstPaymentFixesThePool() public {
        _submit(ALICE_KEY, 3e6);
        _submit(BOB_KEY, 1e6);
        VM.recordLogs();
        federation.pay(_one(STRANGER));
        _assertNot(Federation.PoolShort.selector, VM.getRecordedLogs());
        (,,,, uint256 pool) = federation.round();
        VM.assertEq(pool, 0);

        require(token.transfer(address(federation), 1e6));
        federation.pay(_one(ALICE));
        (,,,, pool) = federation.round();
        VM.assertEq(pool, FUNDS + 1e6);
        VM.assertEq(federation.credits(ALICE), 15e5);
    }

    function test_ShortPoolIsToldOnce() public {
        _submit(ALICE_KEY, 3e6);
        _submit(BOB_KEY, 1e6);
        federation.pay(_one(ALICE));
        VM.recordLogs();
        federation.pay(_one(BOB));
        _assertNot(Federation.PoolShort.selector, VM.getRecordedLogs());
    }

    /// @dev Shares are of what is due when the payments begin, whatever was refused before.
    function testFuzz_RefusalsLeaveMoreForTheOthers(uint96 a, uint96 b, uint96 c, uint256 funds, bool paused) public {
        VM.assume(a != 0 && b != 0 && c != 0);
        funds = _bound(funds, 0, uint256(a) + c + 2);
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        require(token.transfer(address(federation), funds));
        federation.enrol(_two(ALICE, BOB));
        federation.enrol(_one(CAROL));
        _submit(ALICE_KEY, a);
        _submit(BOB_KEY, b);
        _submit(CAROL_KEY, c);
        if (paused) federation.pay(_one(STRANGER));
        federation.refuse(BOB, Refusal.NotStored);
        federation.pay(_two(ALICE, BOB));
        federation.pay(_one(CAROL));

        uint256 due = uint256(a) + c;
        VM.assertEq(federation.credits(ALICE), due > funds ? Math.mulDiv(a, funds, due) : a);
        VM.assertEq(federation.credits(BOB), 0);
        VM.assertEq(federation.credits(CAROL), due > funds ? Math.mulDiv(c, funds, due) : c);
        VM.assertLe(federation.totalCredits(), funds);
        _advance();
    }

    function test_FundsThatComeAfterTheFirstPaymentAreForTheNextVersion() public {
        _submit(ALICE_KEY, 3e6);
        _submit(BOB_KEY, 1e6);
        federation.pay(_one(ALICE));
        require(token.transfer(address(federation), 5e6));
        federation.pay(_one(BOB));
        VM.assertEq(federation.credits(BOB), 25e4);
        VM.assertEq(federation.pool(), 5e6);
    }

    function test_FullPoolIsNotCalledShort() public {
        // forge-lint: disable-next-line(unsafe-typecast)
        _submit(ALICE_KEY, uint96(FUNDS));
        VM.recordLogs();
        federation.pay(_one(ALICE));
        Vm.Log[] memory logs = VM.getRecordedLogs();
        VM.assertEq(logs.length, 3);
        VM.assertEq(logs[0].topics[0], Federation.Closed.selector);
        VM.assertEq(logs[1].topics[0], Federation.Paid.selector);
        VM.assertEq(logs[2].topics[0], Treasury.Credited.selector);
        VM.assertEq(federation.pool(), 0);
    }

    function test_EmptyPoolPaysNothingAndLetsTheRunGoOn() public {
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        federation.enrol(_one(ALICE));
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 0);
        _advance();
        VM.assertEq(federation.version(), 1);
    }

    function test_DustStaysInThePool() public {
        federation.enrol(_one(CAROL));
        _submit(ALICE_KEY, 1e6);
        _submit(BOB_KEY, 1e6);
        _submit(CAROL_KEY, 1e6);
        federation.pay(_two(ALICE, BOB));
        federation.pay(_one(CAROL));
        VM.assertEq(federation.credits(CAROL), 333_333);
        VM.assertEq(federation.pool(), 1);
        _advance();
        uint256 before = token.balanceOf(address(this));
        federation.finish();
        VM.assertEq(token.balanceOf(address(this)), before + 1);
    }

    function testFuzz_SharesNeverExceedThePool(uint96 a, uint96 b, uint96 c, uint256 funds) public {
        VM.assume(a != 0 && b != 0 && c != 0);
        funds = _bound(funds, 0, SUPPLY - FUNDS);
        if (funds & 1 == 0) funds %= uint256(a) + b + c;
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        require(token.transfer(address(federation), funds));
        federation.enrol(_two(ALICE, BOB));
        federation.enrol(_one(CAROL));
        _submit(ALICE_KEY, a);
        _submit(BOB_KEY, b);
        _submit(CAROL_KEY, c);
        federation.pay(_two(BOB, ALICE));
        federation.pay(_one(CAROL));

        uint256 due = uint256(a) + b + c;
        VM.assertEq(federation.credits(ALICE), due > funds ? Math.mulDiv(a, funds, due) : a);
        VM.assertEq(federation.credits(BOB), due > funds ? Math.mulDiv(b, funds, due) : b);
        VM.assertEq(federation.credits(CAROL), due > funds ? Math.mulDiv(c, funds, due) : c);
        VM.assertLe(federation.totalCredits(), funds);
        if (due > funds) VM.assertLe(federation.pool(), 2);
        _advance();
        federation.finish();
        VM.assertEq(token.balanceOf(address(federation)), federation.totalCredits());
    }

    function test_StrangerCannotPayEarly() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE - 1);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
    }

    function test_AnyonePaysWhatIsOverdue() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 500);
    }

    function test_AnyonePaysTheRestOfWhatIsOverdue() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(ALICE));
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(BOB));
        VM.assertEq(federation.credits(BOB), 70);
    }

    /// @dev Otherwise anyone could end the submissions of a version in which nobody has been accepted yet.
    function test_StrangerCannotCloseAVersionWithoutDues() public {
        VM.warp(block.timestamp + 100 * PATIENCE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(new address[](0));
    }

    function test_StrangerCannotPayOnceAllIsPaid() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.warp(block.timestamp + PATIENCE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(new address[](0));
    }

    function test_PatienceIsNotInheritedByTheNextVersion() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _advance();
        VM.warp(block.timestamp + PATIENCE);
        _submit(ALICE_KEY, 500);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
    }

    /// @dev Neither replays nor forgeries.
    function test_StrangerCannotPushTheDeadline() public {
        Federation.SignedContribution memory item = _asked(ALICE_KEY, 500);
        federation.submit(_one(item));
        VM.warp(block.timestamp + PATIENCE);
        federation.submit(_one(item));
        federation.submit(_one(_sign(CAROL_KEY, federation, _asking(BOB, 500))));
        federation.submit(_one(_asked(CAROL_KEY, 500)));
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        VM.assertEq(federation.credits(ALICE), 500);
    }

    /// @dev Otherwise an owner could put the payments off with a contribution of a device of its own now and then.
    function test_LaterContributionsDoNotPushTheDeadline() public {
        uint256 start = VM.getBlockTimestamp();
        _submit(ALICE_KEY, 500);
        VM.warp(start + PATIENCE - 1);
        _submit(BOB_KEY, 70);
        VM.warp(start + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_two(ALICE, BOB));
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_ContributionsWhenOverdueDoNotPushTheDeadline() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE);
        _submit(BOB_KEY, 70);
        VM.prank(STRANGER);
        federation.pay(_two(ALICE, BOB));
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_RefusingTheFirstDoesNotPushTheDeadline() public {
        uint256 start = VM.getBlockTimestamp();
        _submit(ALICE_KEY, 500);
        VM.warp(start + 5);
        _submit(BOB_KEY, 70);
        federation.refuse(ALICE, Refusal.NotStored);
        VM.warp(start + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(BOB));
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_PatienceStartsAnewOnceAllWereRefused() public {
        uint256 start = VM.getBlockTimestamp();
        _submit(ALICE_KEY, 500);
        federation.refuse(ALICE, Refusal.NotStored);
        VM.warp(start + PATIENCE);
        _submit(BOB_KEY, 70);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(_one(BOB));
    }

    function test_FreeContributionDoesNotStartThePatience() public {
        uint256 start = VM.getBlockTimestamp();
        _submit(ALICE_KEY, 0);
        VM.warp(start + PATIENCE);
        _submit(BOB_KEY, 70);
        (, uint64 dueSince,,,) = federation.round();
        VM.assertEq(dueSince, start + PATIENCE);
    }

    function test_StrangerCannotCloseAVersionOfFreeContributions() public {
        _submit(ALICE_KEY, 0);
        VM.warp(block.timestamp + 100 * PATIENCE);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
    }

    function test_StrangersPaymentDoesNotFailTheOwners() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        _assertPays(_two(ALICE, BOB), 1);
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.credits(BOB), 70);
    }

    function test_StrangersPaymentOfAllDoesNotFailTheOwners() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(Federation.pay, _one(ALICE));
        calls[1] = abi.encodeCall(Federation.advance, (SEED, _model("model 1"), 500));
        federation.multicall(calls);
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(federation.version(), 1);
    }

    /// @dev What a stranger pays can't be refused any more, but keeps the owner from nothing else.
    function test_StrangersPaymentLetsTheRunGoOn() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.PaymentsBegun.selector, 0));
        federation.refuse(BOB, Refusal.NotStored);
        federation.close();
        federation.pay(_one(BOB));
        _advance();
        federation.finish();
        VM.assertTrue(federation.finished());
    }

    /// @dev Only a payment ends the owner's say.
    function test_StrangersCloseLetsTheOwnerRefuse() public {
        _submit(ALICE_KEY, 500);
        VM.warp(block.timestamp + PATIENCE);
        VM.prank(STRANGER);
        federation.pay(new address[](0));
        federation.refuse(ALICE, Refusal.NotStored);
        _advance();
        VM.assertEq(federation.version(), 1);
    }

    function test_EndlessPatienceNeverRunsOut() public {
        federation = new PayAsAsked(token, PLAN, type(uint64).max, _model("model 0"));
        federation.enrol(_one(ALICE));
        _submit(ALICE_KEY, 500);
        VM.warp(type(uint64).max);
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, STRANGER));
        VM.prank(STRANGER);
        federation.pay(_one(ALICE));
    }

    // Advance.

    function test_AdvancePublishesTheNextModel() public {
        Federation.Model memory next = _model("model 1");
        VM.expectEmit(address(federation));
        emit Federation.SeedRevealed(0, SEED);
        VM.expectEmit(address(federation));
        emit Federation.ModelPublished(1, next.digest, next.cid, next.seedCommitment, next.errorPpm);
        federation.advance(SEED, next, 0);
        VM.assertEq(federation.version(), 1);
        _assertModel(1, next);
    }

    function test_AdvanceKeepsTheHistory() public {
        federation.advance(SEED, _model("model 1"), 0);
        federation.advance(SEED, _model("model 2"), 0);
        _assertModel(0, _model("model 0"));
        _assertModel(1, _model("model 1"));
        _assertModel(2, _model("model 2"));
    }

    function test_AdvanceKeepsAnUnmeasuredError() public {
        Federation.Model memory next = _model("model 1");
        next.errorPpm = federation.UNMEASURED();
        federation.advance(SEED, next, 0);
        _assertModel(1, next);
    }

    function test_AdvanceOpensANewRound() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _advance();
        (uint128 due, uint64 dueSince, bool closed, uint128 paid, uint256 pool) = federation.round();
        VM.assertEq(due, 0);
        VM.assertEq(dueSince, 0);
        VM.assertFalse(closed);
        VM.assertEq(paid, 0);
        VM.assertEq(pool, 0);
    }

    function test_OnlyOwnerAdvances() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.advance(SEED, _model("model 1"), 0);
    }

    function test_RefusesToAdvanceUnpaid() public {
        _submit(ALICE_KEY, 500);
        VM.expectRevert(abi.encodeWithSelector(Federation.Unpaid.selector, 0, 500, 0));
        federation.advance(SEED, _model("model 1"), 0);
    }

    function test_RefusesToAdvancePartlyPaid() public {
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.Unpaid.selector, 0, 570, 500));
        federation.advance(SEED, _model("model 1"), 0);
    }

    function test_RefusesTheWrongSeed() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.WrongSeed.selector, 0));
        federation.advance("another seed", _model("model 1"), 0);
    }

    // Finish.

    function test_FinishReturnsTheRest() public {
        _payAndAdvance();
        uint256 before = token.balanceOf(address(this));
        VM.expectEmit(address(federation));
        emit Federation.Finished(1);
        federation.finish();
        VM.assertTrue(federation.finished());
        VM.assertEq(federation.pool(), 0);
        VM.assertEq(token.balanceOf(address(this)), before + FUNDS - 500);
        VM.assertEq(token.balanceOf(address(federation)), 500);
    }

    function test_CreditsOutliveTheRun() public {
        _payAndAdvance();
        federation.finish();
        federation.withdraw(ALICE);
        VM.assertEq(token.balanceOf(ALICE), 500);
    }

    function test_FinishStopsEnrolment() public {
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.enrol(_one(CAROL));
    }

    function test_FinishStopsSubmissions() public {
        federation.finish();
        Federation.SignedContribution[] memory batch = _one(_asked(ALICE_KEY, 500));
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.submit(batch);
    }

    function test_FinishStopsRefusals() public {
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.refuse(ALICE, Refusal.NoAnswer);
    }

    function test_FinishStopsAdvancing() public {
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.advance(SEED, _model("model 1"), 0);
    }

    function test_FinishLeavesNothingToPay() public {
        _payAndAdvance();
        federation.finish();
        require(token.transfer(address(federation), 1234));
        _assertPays(_one(ALICE), 0);
        VM.assertEq(federation.pool(), 1234);
    }

    function test_FinishAgainReturnsWhatCameLate() public {
        _payAndAdvance();
        federation.finish();
        uint256 before = token.balanceOf(address(this));
        require(token.transfer(address(federation), 1234));
        VM.expectEmit(address(federation));
        emit Treasury.PoolEmptied(address(this), 1234);
        federation.finish();
        VM.assertEq(token.balanceOf(address(this)), before);
        VM.assertEq(token.balanceOf(address(federation)), 500);
    }

    function test_FinishesOnlyOnce() public {
        federation.finish();
        VM.recordLogs();
        federation.finish();
        _assertNot(Federation.Finished.selector, VM.getRecordedLogs());
        VM.assertTrue(federation.finished());
    }

    function test_OnlyOwnerFinishes() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.finish();
    }

    function test_OnlyOwnerFinishesAgain() public {
        federation.finish();
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.finish();
    }

    function test_RefusesToFinishUnpaid() public {
        _submit(ALICE_KEY, 500);
        VM.expectRevert(abi.encodeWithSelector(Federation.VersionOpen.selector, 0));
        federation.finish();
    }

    /// @dev Otherwise the seed of the version would never be revealed.
    function test_RefusesToFinishBeforeThePaidVersionEnds() public {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        VM.expectRevert(abi.encodeWithSelector(Federation.VersionOpen.selector, 0));
        federation.finish();
    }

    function test_FinishesOnceAllWereRefused() public {
        _submit(ALICE_KEY, 500);
        federation.refuse(ALICE, Refusal.NotStored);
        federation.finish();
        VM.assertTrue(federation.finished());
    }

    // Several calls at once.

    function test_MulticallSettlesARound() public {
        _submit(ALICE_KEY, 500);
        bytes[] memory calls = new bytes[](5);
        calls[0] = abi.encodeCall(Federation.submit, _one(_asked(BOB_KEY, 70)));
        calls[1] = abi.encodeCall(Federation.close, ());
        calls[2] = abi.encodeCall(Federation.refuse, (ALICE, Refusal.NotFinite));
        calls[3] = abi.encodeCall(Federation.pay, _one(BOB));
        calls[4] = abi.encodeCall(Federation.advance, (SEED, _model("model 1"), 70));
        federation.multicall(calls);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 70);
        VM.assertEq(federation.version(), 1);
    }

    /// @dev The lock is released after each call.
    function test_MulticallPaysAndWithdraws() public {
        _submit(ALICE_KEY, 500);
        bytes[] memory calls = new bytes[](4);
        calls[0] = abi.encodeCall(Federation.pay, _one(ALICE));
        calls[1] = abi.encodeCall(Treasury.withdraw, ALICE);
        calls[2] = abi.encodeCall(Federation.advance, (SEED, _model("model 1"), 500));
        calls[3] = abi.encodeCall(Federation.finish, ());
        federation.multicall(calls);
        VM.assertEq(token.balanceOf(ALICE), 500);
        VM.assertEq(token.balanceOf(address(federation)), 0);
    }

    function test_MulticallGivesNobodyTheOwnersRights() public {
        bytes[] memory calls = new bytes[](1);
        calls[0] = abi.encodeCall(Federation.refuse, (ALICE, Refusal.NotFinite));
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.multicall(calls);
    }

    function test_MulticallIsAllOrNothing() public {
        _submit(ALICE_KEY, 500);
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(Federation.pay, _one(ALICE));
        calls[1] = abi.encodeCall(Federation.refuse, (ALICE, Refusal.NotFinite));
        VM.expectRevert(abi.encodeWithSelector(Federation.PaymentsBegun.selector, 0));
        federation.multicall(calls);
        VM.assertEq(federation.credits(ALICE), 0);
    }

    // A token that calls back.

    function testFuzz_ReenteredPaymentPaysOnce(bool early) public {
        HookToken hook = _hook();
        _submit(ALICE_KEY, 500);
        _submit(BOB_KEY, 70);
        federation.pay(_one(ALICE));
        VM.warp(block.timestamp + PATIENCE);

        hook.arm(address(federation), abi.encodeCall(Federation.pay, _two(ALICE, BOB)), early);
        federation.withdraw(ALICE);
        _assertLockedOut(hook);
        VM.assertEq(hook.balanceOf(ALICE), 500);
        VM.assertEq(federation.credits(ALICE), 0);
        VM.assertEq(federation.credits(BOB), 0);
    }

    /// @dev During a withdrawal the tokens that leave would count as the pool's.
    function testFuzz_ReenteredCloseDoesNotInflateThePool(bool early) public {
        HookToken hook = _hook();
        _payAndAdvance();
        _submit(BOB_KEY, 3e6);
        VM.warp(block.timestamp + PATIENCE);

        hook.arm(address(federation), abi.encodeCall(Federation.pay, _one(BOB)), early);
        federation.withdraw(ALICE);
        _assertLockedOut(hook);
        federation.pay(_one(BOB));
        VM.assertEq(federation.credits(BOB), FUNDS - 500);
        federation.withdraw(BOB);
        VM.assertEq(hook.balanceOf(address(federation)), 0);
    }

    function testFuzz_FinishDuringAWithdrawalIsLockedOut(bool early) public {
        HookToken hook = _hook();
        _payAndAdvance();

        hook.arm(address(this), abi.encodeCall(this.finishAgain, ()), early);
        federation.withdraw(ALICE);
        _assertLockedOut(hook);
        VM.assertFalse(federation.finished());
        VM.assertEq(hook.balanceOf(ALICE), 500);
        VM.assertEq(federation.pool(), FUNDS - 500);
    }

    function testFuzz_WithdrawalDuringTheFinishIsLockedOut(bool early) public {
        HookToken hook = _hook();
        _payAndAdvance();

        hook.arm(address(federation), abi.encodeCall(Treasury.withdraw, ALICE), early);
        federation.finish();
        _assertLockedOut(hook);
        VM.assertEq(federation.credits(ALICE), 500);
        VM.assertEq(hook.balanceOf(address(federation)), 500);
    }

    function testFuzz_ReenteredFinishReturnsTheRestOnce(bool early) public {
        HookToken hook = _hook();
        hook.arm(address(this), abi.encodeCall(this.finishAgain, ()), early);
        federation.finish();
        _assertLockedOut(hook);
        VM.assertEq(hook.balanceOf(address(this)), SUPPLY);
    }

    /// @notice What the token calls, so that the owner is the caller.
    function finishAgain() external {
        federation.finish();
    }

    // Helpers.

    function _asking(address device, uint96 due) internal view returns (Federation.Contribution memory c) {
        c = _contribution(device);
        c.version = federation.version();
        c.digest = bytes32(uint256(due));
    }

    function _asked(uint256 key, uint96 due) internal view returns (Federation.SignedContribution memory) {
        return _sign(key, federation, _asking(VM.addr(key), due));
    }

    function _submit(uint256 key, uint96 due) internal {
        federation.submit(_one(_asked(key, due)));
    }

    function _advance() internal {
        (uint128 due,,,,) = federation.round();
        federation.advance(SEED, _model("next model"), due);
    }

    /// @dev Alice has a credit of 500, and version 1 is open.
    function _payAndAdvance() internal {
        _submit(ALICE_KEY, 500);
        federation.pay(_one(ALICE));
        _advance();
    }

    /// @dev A federation that pays in a token that calls back.
    function _hook() internal returns (HookToken hook) {
        hook = new HookToken(SUPPLY);
        federation = new PayAsAsked(hook, PLAN, PATIENCE, _model("model 0"));
        require(hook.transfer(address(federation), FUNDS));
        federation.enrol(_two(ALICE, BOB));
    }

    function _two(address a, address b) internal pure returns (address[] memory accounts) {
        accounts = new address[](2);
        (accounts[0], accounts[1]) = (a, b);
    }

    function _assertRejected(Federation.SignedContribution memory item, Refusal reason) internal {
        (uint128 due,,,,) = federation.round();
        _expectRejected(federation, item, reason);
        federation.submit(_one(item));
        (uint128 after_,,,,) = federation.round();
        VM.assertEq(after_, due);
    }

    /// @dev Pays and counts to how many.
    function _assertPays(address[] memory accounts, uint256 expected) internal {
        VM.recordLogs();
        federation.pay(accounts);
        Vm.Log[] memory logs = VM.getRecordedLogs();
        uint256 count;
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == Federation.Paid.selector) ++count;
        }
        VM.assertEq(count, expected);
    }

    function _assertPaid(uint128 expected) internal view {
        (,,, uint128 paid,) = federation.round();
        VM.assertEq(paid, expected);
    }

    function _assertNot(bytes32 topic, Vm.Log[] memory logs) internal pure {
        for (uint256 i; i < logs.length; ++i) {
            VM.assertFalse(logs[i].topics[0] == topic);
        }
    }

    function _assertLockedOut(HookToken hook) internal view {
        VM.assertTrue(hook.tried());
        VM.assertFalse(hook.succeeded());
        VM.assertEq(hook.answer(), abi.encodePacked(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector));
    }

    function _assertModel(uint32 version, Federation.Model memory expected) internal view {
        (bytes32 digest, bytes memory cid, bytes32 seedCommitment, uint32 errorPpm) = federation.models(version);
        VM.assertEq(digest, expected.digest);
        VM.assertEq(cid, expected.cid);
        VM.assertEq(seedCommitment, expected.seedCommitment);
        VM.assertEq(errorPpm, expected.errorPpm);
    }
}
