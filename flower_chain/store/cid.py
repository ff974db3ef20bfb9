"""The content identifier (CID) of some bytes: the one that an IPFS node gives them.

Computed as ``ipfs add --cid-version=1 --raw-leaves --chunker=size-262144`` does: the bytes are cut
into blocks of 256 KiB, of which up to 174 are linked from a UnixFS node, and those nodes from
further ones until a single root is left (https://docs.ipfs.tech/concepts/file-systems/#unixfs,
https://ipld.io/specs/codecs/dag-pb/spec/). A CID is version 1, then the codec (raw for bytes that
fit one block, dag-pb otherwise), then the root's SHA-256; as text in lower-case base32.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from flower_chain.errors import FormatError

_BLOCK_BYTES = 256 * 1024
_LINKS_PER_NODE = 174
_RAW = 0x55
_DAG_PB = 0x70
_SHA2_256 = b"\x12\x20"
_CID_BYTES = 36
_UNIXFS_FILE = 2


class _Node(NamedTuple):
    cid: bytes
    content_bytes: int  # of the file, below this node
    tree_bytes: int  # of this block and all below it


def cid_of(data: bytes) -> str:
    """The CID of `data`, as text of 59 characters."""
    hasher = Hasher()
    hasher.update(data)
    return hasher.cid()


class Hasher:
    """The CID of bytes that come piece by piece, however they are cut.

    Attributes
    ----------
    size : int
        How many bytes have come.
    """

    def __init__(self) -> None:
        self.size = 0
        self._full: list[_Node] = []
        self._block = hashlib.sha256()
        self._block_bytes = 0

    def update(self, piece: bytes) -> None:
        """Take the next piece."""
        view = memoryview(piece)
        self.size += len(view)
        while view:
            part = view[: _BLOCK_BYTES - self._block_bytes]
            view = view[len(part) :]
            self._block.update(part)
            self._block_bytes += len(part)
            if self._block_bytes == _BLOCK_BYTES:
                self._full.append(self._leaf())
                self._block, self._block_bytes = hashlib.sha256(), 0

    def cid(self) -> str:
        """The CID of all that has come."""
        nodes = self._full.copy()
        if self._block_bytes or not nodes:
            nodes.append(self._leaf())
        while len(nodes) > 1:
            nodes = [
                _parent(nodes[i : i + _LINKS_PER_NODE])
                for i in range(0, len(nodes), _LINKS_PER_NODE)
            ]
        return _text(nodes[0].cid)

    def _leaf(self) -> _Node:
        cid = _head(_RAW) + self._block.digest()
        return _Node(cid, self._block_bytes, self._block_bytes)


def cid_to_bytes(cid: str) -> bytes:
    """The 36 bytes that the text of a CID stands for.

    Raises
    ------
    FormatError
        If it is not the text of a CID as :func:`cid_of` makes it.
    """
    try:
        binary = base64.b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{cid!r} is not a CID: {error}") from error
    # Base32 has spare bits at the end, and the alphabet two cases: only one spelling is a name.
    if cid_from_bytes(binary) != cid:
        raise FormatError(f"{cid!r} is not how a CID is written: lower-case base32 after a 'b'")
    return binary


def cid_from_bytes(binary: bytes) -> str:
    """The text of a CID.

    Raises
    ------
    FormatError
        If it is not a CID of version 1, raw or dag-pb, with SHA-256.
    """
    heads = (_head(_RAW), _head(_DAG_PB))
    if len(binary) != _CID_BYTES or not binary.startswith(heads):
        raise FormatError(
            f"0x{binary[:_CID_BYTES].hex()} ({len(binary)} bytes) is not a CID: "
            "36 bytes, version 1, raw or dag-pb, SHA-256"
        )
    return _text(binary)


def _text(binary: bytes) -> str:
    return "b" + base64.b32encode(binary).decode().rstrip("=").lower()


def _head(codec: int) -> bytes:
    return bytes([1, codec]) + _SHA2_256


def _parent(children: Sequence[_Node]) -> _Node:
    size = sum(child.content_bytes for child in children)
    links = b"".join(_bytes_field(2, _link(child)) for child in children)
    block = links + _bytes_field(1, _unixfs(children, size))
    cid = _head(_DAG_PB) + hashlib.sha256(block).digest()
    return _Node(cid, size, len(block) + sum(child.tree_bytes for child in children))


def _link(child: _Node) -> bytes:
    # Field 2 is the link's name: a file's links have none, but dag-pb wants it written.
    return _bytes_field(1, child.cid) + _bytes_field(2, b"") + _int_field(3, child.tree_bytes)


def _unixfs(children: Sequence[_Node], size: int) -> bytes:
    block_sizes = b"".join(_int_field(4, child.content_bytes) for child in children)
    return _int_field(1, _UNIXFS_FILE) + _int_field(3, size) + block_sizes


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
