// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {AccessList} from "../src/AccessList.sol";
import {AccessFixture} from "./AccessList.t.sol";
import {VM} from "./Vm.sol";

/// @title AccessHandler
/// @notice Two granters grant and revoke three files as the fuzzer asks, and whatever was ever signed is relayed again.
contract AccessHandler is AccessFixture {
    AccessList.Grant[] private _grants;
    AccessList.Revocation[] private _revocations;

    /// @notice Ghost: what should stand, by granter and file.
    mapping(address granter => mapping(uint256 file => bool)) public granted;

    /// @notice How often each granter has changed its mind about a file.
    mapping(address granter => mapping(uint256 file => uint64)) public turns;

    /// @notice How many old signatures were taken: none must be.
    uint256 public revived;

    function target() external view returns (AccessList) {
        return list;
    }

    function granters() external view returns (address, address) {
        return (ALICE, BOB);
    }

    function reader() external pure returns (address) {
        return READER;
    }

    function fileOf(uint256 file) public pure returns (bytes memory) {
        return abi.encodePacked(bytes4(0x01551220), keccak256(abi.encode(file)));
    }

    /// @notice A granter does what it has not done: it grants, or takes back; itself, or through somebody else.
    function turn(uint256 who, uint256 file, bool relayed) external {
        (uint256 key, address granter) = who % 2 == 0 ? (ALICE_KEY, ALICE) : (BOB_KEY, BOB);
        file %= 3;
        uint64 number = turns[granter][file];
        if (granted[granter][file]) {
            AccessList.Revocation memory item = _revocation(granter, number);
            item.cid = fileOf(file);
            _revocations.push(item = _signed(key, item));
            if (!relayed) VM.prank(granter);
            list.revoke(_one(item));
        } else {
            AccessList.Grant memory item = _grant(granter, number);
            item.cid = fileOf(file);
            _grants.push(item = _signed(key, item));
            if (!relayed) VM.prank(granter);
            list.grant(_one(item));
        }
        granted[granter][file] = !granted[granter][file];
        turns[granter][file] = number + 1;
    }

    /// @notice Somebody sends again what was signed before, used or not.
    function replay(uint256 which) external {
        if (_grants.length > 0) {
            try list.grant(_one(_grants[which % _grants.length])) {
                ++revived;
            } catch {}
        }
        if (_revocations.length > 0) {
            try list.revoke(_one(_revocations[which % _revocations.length])) {
                ++revived;
            } catch {}
        }
    }
}

/// @title AccessListInvariants
contract AccessListInvariants {
    AccessHandler internal handler = new AccessHandler();

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_WhatStandsIsWhatEachGranterLastSaid() public view {
        (address alice, address bob) = handler.granters();
        AccessList list = handler.target();
        for (uint256 file; file < 3; ++file) {
            bytes memory cid = handler.fileOf(file);
            VM.assertTrue(list.stands(alice, handler.reader(), cid) == handler.granted(alice, file));
            VM.assertTrue(list.stands(bob, handler.reader(), cid) == handler.granted(bob, file));
            VM.assertEq(list.turn(alice, handler.reader(), cid), handler.turns(alice, file));
        }
    }

    function invariant_NoOldSignatureIsTaken() public view {
        VM.assertEq(handler.revived(), 0);
    }
}
