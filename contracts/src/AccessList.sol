// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title AccessList
/// @notice Who gave whom access to which sealed file of a run, and who took it back (papers/4 section 3).
/// @dev It knows nothing of keys: whether a granter can open the file, and whether the wrap opens it for the reader, is found
///      off chain, by `flower-chain verify`. What it guarantees is that nobody grants or revokes in another's name, and that
///      a grant that was revoked stays so: what is said of a file to a reader is numbered, and a signature holds for one
///      number only.
contract AccessList is EIP712 {
    /// @notice `granter` gives `reader` access to a file.
    /// @param reader Its account; for a key of another kind, the end of the key's Keccak-256.
    /// @param turn How often the granter has granted and revoked this before: an even number.
    /// @param cid Binary CIDv1 of the sealed file.
    /// @param wrap The file's key, encrypted to the reader.
    /// @param r With `vs`: the granter's compact signature (EIP-2098) of Grant(address reader,uint64 turn,bytes cid,bytes
    ///        wrap). Of no account if the granter itself sends the transaction.
    struct Grant {
        address granter;
        address reader;
        uint64 turn;
        bytes cid;
        bytes wrap;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice `granter` takes back what it granted.
    /// @param turn As above; an odd number.
    /// @param r With `vs`: its signature of Revocation(address reader,uint64 turn,bytes cid).
    struct Revocation {
        address granter;
        address reader;
        uint64 turn;
        bytes cid;
        bytes32 r;
        bytes32 vs;
    }

    bytes32 private constant GRANT_TYPEHASH = keccak256("Grant(address reader,uint64 turn,bytes cid,bytes wrap)");
    bytes32 private constant REVOCATION_TYPEHASH = keccak256("Revocation(address reader,uint64 turn,bytes cid)");

    /// @notice The contract of the run that names the files.
    address public immutable run;

    /// @dev By granter, reader and file: how often it was granted and revoked. Odd: the grant stands.
    mapping(bytes32 subject => uint64 turn) private _turns;

    /// @notice The list is that of `run`.
    event Opened(address indexed run);

    /// @notice `granter` gave `reader` access to the file `cid`.
    event Granted(address indexed granter, address indexed reader, bytes cid, bytes wrap);

    /// @notice `granter` took it back.
    event Revoked(address indexed granter, address indexed reader, bytes cid);

    /// @notice `granter` neither sent nor signed this.
    error NotSigned(address granter);

    /// @notice What `granter` grants stands already.
    error AlreadyGranted(address granter, address reader, bytes cid);

    /// @notice What `granter` revokes does not stand.
    error NotGranted(address granter, address reader, bytes cid);

    /// @notice It was meant for another state of things than the present `turn`.
    error WrongTurn(address granter, address reader, bytes cid, uint64 turn);

    // A list of no run is found to be that by whoever looks.
    // slither-disable-next-line missing-zero-check
    constructor(address run_) EIP712("flower-chain", "1") {
        run = run_;
        emit Opened(run_);
    }

    /// @notice Records grants, each under its granter's name; all of them or none.
    function grant(Grant[] calldata batch) external {
        for (uint256 i; i < batch.length; ++i) {
            Grant calldata item = batch[i];
            bytes32 structHash = keccak256(
                abi.encode(GRANT_TYPEHASH, item.reader, item.turn, keccak256(item.cid), keccak256(item.wrap))
            );
            _requireSigned(item.granter, structHash, item.r, item.vs);
            bytes32 subject = _subject(item.granter, item.reader, item.cid);
            if (_stands(_turns[subject])) revert AlreadyGranted(item.granter, item.reader, item.cid);
            _take(subject, item.granter, item.reader, item.cid, item.turn);
            emit Granted(item.granter, item.reader, item.cid, item.wrap);
        }
    }

    /// @notice Takes grants back, each under its granter's name; all of them or none.
    function revoke(Revocation[] calldata batch) external {
        for (uint256 i; i < batch.length; ++i) {
            Revocation calldata item = batch[i];
            bytes32 structHash = keccak256(abi.encode(REVOCATION_TYPEHASH, item.reader, item.turn, keccak256(item.cid)));
            _requireSigned(item.granter, structHash, item.r, item.vs);
            bytes32 subject = _subject(item.granter, item.reader, item.cid);
            if (!_stands(_turns[subject])) revert NotGranted(item.granter, item.reader, item.cid);
            _take(subject, item.granter, item.reader, item.cid, item.turn);
            emit Revoked(item.granter, item.reader, item.cid);
        }
    }

    /// @notice How often `granter` has granted and revoked this: what its next signature must name.
    function turn(address granter, address reader, bytes calldata cid) external view returns (uint64) {
        return _turns[_subject(granter, reader, cid)];
    }

    /// @notice Whether `granter` has given `reader` access to the file `cid` and not taken it back.
    function stands(address granter, address reader, bytes calldata cid) external view returns (bool) {
        return _stands(_turns[_subject(granter, reader, cid)]);
    }

    /// @dev Counts on, if `turn_` is where things are.
    function _take(bytes32 subject, address granter, address reader, bytes calldata cid, uint64 turn_) private {
        uint64 current = _turns[subject];
        if (turn_ != current) revert WrongTurn(granter, reader, cid, current);
        _turns[subject] = current + 1;
    }

    /// @dev Whoever sends the transaction need not sign.
    function _requireSigned(address granter, bytes32 structHash, bytes32 r, bytes32 vs) private view {
        if (msg.sender == granter) return;
        // What is left out is the fault's detail.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError fault,) = ECDSA.tryRecover(_hashTypedDataV4(structHash), r, vs);
        if (fault != ECDSA.RecoverError.NoError || signer != granter) revert NotSigned(granter);
    }

    function _subject(address granter, address reader, bytes calldata cid) private pure returns (bytes32) {
        return keccak256(abi.encode(granter, reader, keccak256(cid)));
    }

    function _stands(uint64 turn_) private pure returns (bool) {
        return turn_ % 2 == 1;
    }
}
