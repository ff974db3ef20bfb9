// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Federation} from "../src/Federation.sol";
import {Refusal} from "../src/Refusal.sol";
import {RewardToken} from "../src/RewardToken.sol";
import {VM, Vm} from "./Vm.sol";

/// @title Fixture
/// @notice What the tests of every scheme share: a token, devices with keys, and signed contributions.
/// @dev The signed hash is computed here from EIP-712's text alone, so that every accepted contribution also tests the
///      contract's own hash.
abstract contract Fixture {
    uint256 internal constant ALICE_KEY = 0xa11ce;
    uint256 internal constant BOB_KEY = 0xb0b;
    uint256 internal constant CAROL_KEY = 0xca201;
    uint256 internal constant SUPPLY = 1e30;
    uint64 internal constant PATIENCE = 1 days;
    bytes32 internal constant PLAN = "plan";
    bytes32 internal constant SEED = "seed";

    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant CONTRIBUTION_TYPEHASH = keccak256(
        "Contribution(address device,uint32 version,uint32 dataCost,bytes32 digest,bytes cid,uint256 classes,bytes errors,uint64 spent)"
    );

    address internal immutable ALICE = VM.addr(ALICE_KEY);
    address internal immutable BOB = VM.addr(BOB_KEY);
    address internal immutable CAROL = VM.addr(CAROL_KEY);
    address internal immutable STRANGER = VM.addr(0x57a);

    RewardToken internal token = new RewardToken(SUPPLY);

    function _model(bytes32 digest) internal pure returns (Federation.Model memory) {
        return Federation.Model(digest, abi.encodePacked(bytes4(0x01551220), digest), keccak256(abi.encode(SEED)), 1e5);
    }

    /// @dev Errors that fall: good under every rule.
    function _contribution(address device) internal pure returns (Federation.Contribution memory) {
        return Federation.Contribution({
            device: device,
            version: 0,
            dataCost: 1000,
            digest: keccak256("update"),
            cid: abi.encodePacked(bytes4(0x01551220), keccak256("sealed update")),
            classes: 0x3ff,
            errors: abi.encodePacked(uint32(900_000), uint32(400_000), uint32(100_000)),
            spent: 0
        });
    }

    function _domain(string memory name, string memory version, uint256 chainId, address verifying)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(name)), keccak256(bytes(version)), chainId, verifying)
        );
    }

    function _hash(bytes32 domain, Federation.Contribution memory c) internal pure returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                CONTRIBUTION_TYPEHASH,
                c.device,
                c.version,
                c.dataCost,
                c.digest,
                keccak256(c.cid),
                c.classes,
                keccak256(c.errors),
                c.spent
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _sign(uint256 key, bytes32 domain, Federation.Contribution memory c)
        internal
        pure
        returns (Federation.SignedContribution memory)
    {
        (bytes32 r, bytes32 vs) = VM.signCompact(key, _hash(domain, c));
        return Federation.SignedContribution(c, r, vs);
    }

    function _sign(uint256 key, Federation federation, Federation.Contribution memory c)
        internal
        view
        returns (Federation.SignedContribution memory)
    {
        return _sign(key, _domain("flower-chain", "1", block.chainid, address(federation)), c);
    }

    function _expectAccepted(Federation federation, Federation.SignedContribution memory item, uint128 due) internal {
        Federation.Contribution memory c = item.contribution;
        VM.expectEmit(address(federation));
        emit Federation.Accepted(
            c.device, c.dataCost, c.digest, c.cid, c.classes, c.errors, c.spent, item.r, item.vs, due
        );
    }

    function _expectRejected(Federation federation, Federation.SignedContribution memory item, Refusal reason)
        internal
    {
        Federation.Contribution memory c = item.contribution;
        VM.expectEmit(address(federation));
        emit Federation.Rejected(
            c.device, c.version, c.dataCost, c.digest, c.cid, c.classes, c.errors, c.spent, item.r, item.vs, reason
        );
    }

    /// @dev Submits `item` and reads from the log what became of it.
    function _outcome(Federation federation, Federation.SignedContribution memory item)
        internal
        returns (Refusal reason, uint128 due)
    {
        VM.recordLogs();
        federation.submit(_one(item));
        Vm.Log[] memory logs = VM.getRecordedLogs();
        VM.assertEq(logs.length, 1, "logs");
        if (logs[0].topics[0] == Federation.Accepted.selector) {
            (,,,,,,,, due) =
                abi.decode(logs[0].data, (uint32, bytes32, bytes, uint256, bytes, uint64, bytes32, bytes32, uint128));
        } else {
            (,,,,,,,,, reason) = abi.decode(
                logs[0].data, (uint32, uint32, bytes32, bytes, uint256, bytes, uint64, bytes32, bytes32, Refusal)
            );
        }
    }

    function _total(Federation federation) internal view returns (uint256) {
        (uint128 due,,,,) = federation.round();
        return due;
    }

    function _due(Federation federation, address device) internal view returns (uint128 due) {
        (,, due,) = federation.devices(device);
    }

    function _one(Federation.SignedContribution memory item)
        internal
        pure
        returns (Federation.SignedContribution[] memory items)
    {
        items = new Federation.SignedContribution[](1);
        items[0] = item;
    }

    function _one(address account) internal pure returns (address[] memory accounts) {
        accounts = new address[](1);
        accounts[0] = account;
    }

    /// @dev Folds a fuzzed `value` into [`min`, `max`].
    function _bound(uint256 value, uint256 min, uint256 max) internal pure returns (uint256) {
        return min + value % (max - min + 1);
    }

    function _assertEq(Refusal left, Refusal right) internal pure {
        VM.assertEq(uint256(left), uint256(right));
    }
}
