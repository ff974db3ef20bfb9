// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {AccessList} from "../src/AccessList.sol";
import {VM, Vm} from "./Vm.sol";

/// @title AccessFixture
/// @notice Grants, revocations, and their signatures, whose hashes are computed here from EIP-712's text alone.
abstract contract AccessFixture {
    uint256 internal constant ALICE_KEY = 0xa11ce;
    uint256 internal constant BOB_KEY = 0xb0b;
    address internal constant RUN = address(0xc0ffee);
    address internal constant READER = address(0x4ead);
    bytes internal constant CID = hex"01551220aa";
    bytes internal constant WRAP = hex"5ea1";

    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    address internal immutable ALICE = VM.addr(ALICE_KEY);
    address internal immutable BOB = VM.addr(BOB_KEY);

    AccessList internal list = new AccessList(RUN);

    function _grant(address granter, uint64 turn) internal pure returns (AccessList.Grant memory) {
        return AccessList.Grant(granter, READER, turn, CID, WRAP, 0, 0);
    }

    function _revocation(address granter, uint64 turn) internal pure returns (AccessList.Revocation memory) {
        return AccessList.Revocation(granter, READER, turn, CID, 0, 0);
    }

    function _signed(uint256 key, AccessList.Grant memory item) internal view returns (AccessList.Grant memory) {
        bytes32 typeHash = keccak256("Grant(address reader,uint64 turn,bytes cid,bytes wrap)");
        bytes32 structHash =
            keccak256(abi.encode(typeHash, item.reader, item.turn, keccak256(item.cid), keccak256(item.wrap)));
        (item.r, item.vs) = VM.signCompact(key, _hash(structHash));
        return item;
    }

    function _signed(uint256 key, AccessList.Revocation memory item)
        internal
        view
        returns (AccessList.Revocation memory)
    {
        bytes32 typeHash = keccak256("Revocation(address reader,uint64 turn,bytes cid)");
        (item.r, item.vs) =
            VM.signCompact(key, _hash(keccak256(abi.encode(typeHash, item.reader, item.turn, keccak256(item.cid)))));
        return item;
    }

    function _hash(bytes32 structHash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256("flower-chain"), keccak256("1"), block.chainid, address(list))
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _one(AccessList.Grant memory item) internal pure returns (AccessList.Grant[] memory items) {
        items = new AccessList.Grant[](1);
        items[0] = item;
    }

    function _one(AccessList.Revocation memory item) internal pure returns (AccessList.Revocation[] memory items) {
        items = new AccessList.Revocation[](1);
        items[0] = item;
    }
}

contract AccessListTest is AccessFixture {
    function test_KnowsItsRunAndSaysSo() public {
        VM.recordLogs();
        list = new AccessList(RUN);
        Vm.Log[] memory logs = VM.getRecordedLogs();
        VM.assertEq(logs.length, 1);
        VM.assertEq(logs[0].topics[0], AccessList.Opened.selector);
        VM.assertEq(logs[0].topics[1], bytes32(uint256(uint160(RUN))));
        VM.assertEq(list.run(), RUN);
    }

    function test_AnAccountGrantsByItsOwnTransaction() public {
        VM.expectEmit(address(list));
        emit AccessList.Granted(ALICE, READER, CID, WRAP);
        VM.prank(ALICE);
        list.grant(_one(_grant(ALICE, 0)));
        VM.assertTrue(list.stands(ALICE, READER, CID));
        VM.assertEq(list.turn(ALICE, READER, CID), 1);
    }

    function test_AnyoneRelaysWhatAnAccountSigned() public {
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 0))));
        VM.assertTrue(list.stands(ALICE, READER, CID));
        VM.expectEmit(address(list));
        emit AccessList.Revoked(ALICE, READER, CID);
        list.revoke(_one(_signed(ALICE_KEY, _revocation(ALICE, 1))));
        VM.assertFalse(list.stands(ALICE, READER, CID));
    }

    function test_ABatchHoldsWhatSeveralGranted() public {
        AccessList.Grant[] memory batch = new AccessList.Grant[](2);
        (batch[0], batch[1]) = (_signed(ALICE_KEY, _grant(ALICE, 0)), _signed(BOB_KEY, _grant(BOB, 0)));
        list.grant(batch);
        VM.assertTrue(list.stands(ALICE, READER, CID) && list.stands(BOB, READER, CID));
    }

    function test_RevokesOnlyWhatTheGranterItselfGranted() public {
        AccessList.Grant[] memory batch = new AccessList.Grant[](2);
        (batch[0], batch[1]) = (_signed(ALICE_KEY, _grant(ALICE, 0)), _signed(BOB_KEY, _grant(BOB, 0)));
        list.grant(batch);
        VM.prank(ALICE);
        list.revoke(_one(_revocation(ALICE, 1)));
        VM.assertFalse(list.stands(ALICE, READER, CID));
        VM.assertTrue(list.stands(BOB, READER, CID));
    }

    function test_IsGrantedAgainByANewSignature() public {
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 0))));
        list.revoke(_one(_signed(ALICE_KEY, _revocation(ALICE, 1))));
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 2))));
        VM.assertTrue(list.stands(ALICE, READER, CID));
    }

    function test_RefusesAnOldGrantAfterARevocation() public {
        AccessList.Grant[] memory old = _one(_signed(ALICE_KEY, _grant(ALICE, 0)));
        list.grant(old);
        list.revoke(_one(_signed(ALICE_KEY, _revocation(ALICE, 1))));
        VM.expectRevert(abi.encodeWithSelector(AccessList.WrongTurn.selector, ALICE, READER, CID, 2));
        list.grant(old);
    }

    /// @dev One that was signed but not relayed before the granter did the same, and took it back, by itself.
    function test_RefusesAGrantThatWasHeldBackUntilARevocation() public {
        AccessList.Grant[] memory heldBack = _one(_signed(ALICE_KEY, _grant(ALICE, 0)));
        VM.prank(ALICE);
        list.grant(_one(_grant(ALICE, 0)));
        VM.prank(ALICE);
        list.revoke(_one(_revocation(ALICE, 1)));
        VM.expectRevert(abi.encodeWithSelector(AccessList.WrongTurn.selector, ALICE, READER, CID, 2));
        list.grant(heldBack);
    }

    function test_RefusesAnOldRevocationAfterANewGrant() public {
        AccessList.Revocation[] memory old = _one(_signed(ALICE_KEY, _revocation(ALICE, 1)));
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 0))));
        list.revoke(old);
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 2))));
        VM.expectRevert(abi.encodeWithSelector(AccessList.WrongTurn.selector, ALICE, READER, CID, 3));
        list.revoke(old);
    }

    function test_RefusesToGrantWhatStands() public {
        AccessList.Grant[] memory batch = _one(_signed(ALICE_KEY, _grant(ALICE, 0)));
        list.grant(batch);
        VM.expectRevert(abi.encodeWithSelector(AccessList.AlreadyGranted.selector, ALICE, READER, CID));
        list.grant(batch);
    }

    function test_RefusesToRevokeWhatDoesNotStand() public {
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotGranted.selector, ALICE, READER, CID));
        VM.prank(ALICE);
        list.revoke(_one(_revocation(ALICE, 0)));
    }

    function test_RefusesAGrantInTheNameOfAnother() public {
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, ALICE));
        list.grant(_one(_signed(BOB_KEY, _grant(ALICE, 0))));
    }

    function test_RefusesARevocationInTheNameOfAnother() public {
        list.grant(_one(_signed(ALICE_KEY, _grant(ALICE, 0))));
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, ALICE));
        list.revoke(_one(_signed(BOB_KEY, _revocation(ALICE, 1))));
    }

    /// @dev A signature of nobody recovers to the zero address.
    function test_RefusesAGrantOfNobody() public {
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, address(0)));
        list.grant(_one(_grant(address(0), 0)));
    }

    function test_RefusesTheSignatureOfAnotherList() public {
        AccessList.Grant[] memory batch = _one(_signed(ALICE_KEY, _grant(ALICE, 0)));
        list = new AccessList(RUN);
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, ALICE));
        list.grant(batch);
    }

    function test_RefusesTheSignatureOfAnotherChain() public {
        AccessList.Grant[] memory batch = _one(_signed(ALICE_KEY, _grant(ALICE, 0)));
        VM.chainId(4242);
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, ALICE));
        list.grant(batch);
    }

    function test_OneBadItemLeavesNothingOfABatch() public {
        AccessList.Grant[] memory batch = new AccessList.Grant[](2);
        (batch[0], batch[1]) = (_signed(ALICE_KEY, _grant(ALICE, 0)), _grant(BOB, 0));
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, BOB));
        list.grant(batch);
        VM.assertFalse(list.stands(ALICE, READER, CID));
    }

    /// @dev Another reader, turn, file or wrap than was signed.
    function testFuzz_ASignatureHoldsForNothingElse(
        address reader,
        uint64 turn,
        bytes calldata cid,
        bytes calldata wrap
    ) public {
        AccessList.Grant memory item = _signed(ALICE_KEY, _grant(ALICE, 0));
        bytes32 before = keccak256(abi.encode(item));
        uint256 which = uint256(keccak256(abi.encode(reader, turn))) % 4;
        if (which == 0) item.reader = reader;
        if (which == 1) item.turn = turn;
        if (which == 2) item.cid = cid;
        if (which == 3) item.wrap = wrap;
        VM.assume(keccak256(abi.encode(item)) != before);
        VM.expectRevert(abi.encodeWithSelector(AccessList.NotSigned.selector, ALICE));
        list.grant(_one(item));
    }

    function testFuzz_AGrantIsOfOneFileToOneReader(address granter, address reader, bytes calldata cid) public {
        VM.prank(ALICE);
        list.grant(_one(_grant(ALICE, 0)));
        bool same = granter == ALICE && reader == READER && keccak256(cid) == keccak256(CID);
        VM.assertTrue(list.stands(granter, reader, cid) == same);
    }

    /// @dev Many in one transaction, under the limit of the main network.
    function test_ABatchOfFiftyFits() public {
        AccessList.Grant[] memory batch = new AccessList.Grant[](50);
        for (uint256 i; i < 50; ++i) {
            batch[i] = _grant(ALICE, 0);
            batch[i].cid = abi.encodePacked(bytes4(0x01551220), keccak256(abi.encode(i)));
            batch[i].wrap = new bytes(384);
            batch[i] = _signed(ALICE_KEY, batch[i]);
        }
        list.grant(batch);
        VM.assertLe(VM.lastCallGas().gasTotalUsed, 16_777_216 / 2);
        VM.assertTrue(list.stands(ALICE, READER, batch[49].cid));
    }
}
