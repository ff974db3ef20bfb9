"""A store on an IPFS node."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar

from flower_chain.errors import ConfigError, NotStored, StoreError
from flower_chain.store.base import Store
from flower_chain.store.cid import cid_to_bytes
from flower_chain.store.rpc import (
    MOST_SHOWN,
    HttpRpc,
    NoConnection,
    Options,
    Refused,
    Rpc,
    Silence,
)
from flower_chain.waiting import pauses

Answer = TypeVar("Answer")

# As cid_of does. All of it is said: a node's defaults depend on its version and configuration.
ADD: Options = {
    "cid-version": 1,
    "hash": "sha2-256",
    "raw-leaves": True,
    "chunker": "size-262144",
    "max-file-links": 174,
    "trickle": False,
    "cid-base": "base32",
    "pin": True,
}
DIRECTORY = 1
"""What a node calls a folder among the files: one of another store."""

FULL = re.compile(r"no space left|ENOSPC|disk quota|\bfull\b", re.IGNORECASE)


class IpfsStore(Store):
    """A store on an IPFS node, which finds what is stored on other nodes too.

    What is put is pinned, and listed in a folder among the node's files: neither is collected as
    garbage. By that folder the store knows, after a restart and from other processes, what is its
    own; several stores on a node have a folder each, and what two of them hold stays until both
    have removed it.

    Parameters
    ----------
    node : str or Rpc
        URL of the node's RPC, as for :class:`flower_chain.store.rpc.HttpRpc`, or that with a
        timeout of its own, or an :class:`flower_chain.store.ipfs_client.ClientRpc`.
    folder : str
        Path among the node's files; made when something is put.
    quota : int, optional
        The most bytes that the store may hold; what is put at the same time may exceed it.
    patience : float
        Seconds for which a node that can't be reached is asked again; an interrupted answer goes on
        where it ended. Nothing else is tried again.
    least_speed : float
        Bytes a second: what comes more slowly, the node's timeout apart, is given up.

    Raises
    ------
    ConfigError
        If one of these can't be used.
    StoreError
        If the node does not answer, or is none.
    """

    def __init__(
        self,
        node: str | Rpc,
        folder: str = "/flower-chain",
        quota: int | None = None,
        patience: float = 10.0,
        least_speed: float = 16_384.0,
    ) -> None:
        if not re.fullmatch(r"(/\w[\w.-]*)+", folder):
            raise ConfigError(f"folder = {folder!r}: it must be a path such as /flower-chain")
        limits = {"quota": quota, "patience": patience, "least_speed": least_speed}
        for name, value in limits.items():
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} = {value!r}: it must not be negative")
        self._rpc = HttpRpc(node) if isinstance(node, str) else node
        self._folder = folder
        self._quota = quota
        self._patience = patience
        self._least_speed = least_speed
        # Not with patience: a node that has never answered may be somewhere else.
        self._rpc.ask("version")

    def __str__(self) -> str:
        return f"{self._rpc}{self._folder}"

    def __contains__(self, cid: str) -> bool:
        """Whether this node has the beginning of what is stored under `cid`, or finds it elsewhere.

        If nobody has it, that takes as long as the node's timeout.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        StoreError
            If the node does not answer.
        """
        cid_to_bytes(cid)
        try:
            self._insist(lambda: self._rpc.ask("block/stat", cid))
        except (Silence, Refused) as fault:
            self._not_found(fault)
            return False
        return True

    def stored(self) -> dict[str, int]:
        """The CIDs of what was put and not removed, and how many bytes each names.

        Raises
        ------
        StoreError
            If the node does not answer.
        """
        answer: dict[str, Any] = {"Entries": None}
        with _unless("not exist"):
            answer = self._insist(
                lambda: self._rpc.ask("files/ls", self._folder, options={"long": True})
            )
        try:
            files = [each for each in answer["Entries"] or () if each.get("Type") != DIRECTORY]
            return {each["Name"]: int(each["Size"]) for each in files}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise StoreError(f"{self} lists its files in a way that is not IPFS's") from None

    def remove(self, cid: str) -> None:
        """Let the node throw away what is stored under `cid`; nothing happens if nothing is.

        Its bytes go when the node collects garbage: ``ipfs repo gc``, or ``ipfs daemon
        --enable-gc``.

        Raises
        ------
        FormatError
            If `cid` is not a CID.
        StoreError
            If the node does not answer.
        """
        cid_to_bytes(cid)
        # The entry goes last: what is cut short can be done again.
        with _unless("not pinned|pinned indirectly"):
            self._insist(lambda: self._rpc.ask("pin/rm", cid))
        with _unless("not exist"):
            self._insist(lambda: self._rpc.ask("files/rm", self._entry(cid)))

    def close(self) -> None:
        """Close the connections."""
        self._rpc.close()

    def _write(self, cid: str, file: BinaryIO, size: int) -> None:
        self._check_quota(cid, size)
        added = self._insist(lambda: self._rpc.add(file, ADD))
        if added.get("Hash") != cid:
            raise StoreError(
                f"{self} was given the {size} bytes of {cid}, and answered "
                f"{str(added)[:MOST_SHOWN]}"
            )
        with _unless("already has entry"):
            self._insist(
                lambda: self._rpc.ask(
                    "files/cp", f"/ipfs/{cid}", self._entry(cid), options={"parents": True}
                )
            )

    def _read(self, cid: str) -> Iterator[bytes]:
        begun, done, breaks = time.monotonic(), 0, pauses(self._patience)
        while True:
            try:
                for piece in self._rpc.cat(cid, done):
                    done += len(piece)
                    yield piece
                    self._check_speed(cid, done, time.monotonic() - begun)
                return
            except NoConnection:
                if next(breaks, None) is None:
                    raise
            except (Silence, Refused) as fault:
                self._not_found(fault)
                raise NotStored(f"{done} bytes of {cid} came, and then: {fault}") from fault

    def _insist(self, ask: Callable[[], Answer]) -> Answer:
        for _ in pauses(self._patience):
            with suppress(NoConnection):
                return ask()
        return ask()

    def _not_found(self, fault: Silence | Refused) -> None:
        """Raises unless `fault` comes from what was asked for, and not from the node itself."""
        if isinstance(fault, Silence):
            self._insist(lambda: self._rpc.ask("version"))
        elif FULL.search(fault.said):
            raise fault

    def _check_quota(self, cid: str, size: int) -> None:
        if self._quota is None:
            return
        held = sum(bytes_ for other, bytes_ in self.stored().items() if other != cid)
        if held + size > self._quota:
            raise StoreError(
                f"{self} holds {held} bytes; {size} more would exceed its quota of {self._quota}: "
                "remove what is old, or raise the quota"
            )

    def _check_speed(self, cid: str, done: int, seconds: float) -> None:
        if done < (seconds - self._rpc.timeout) * self._least_speed:
            raise NotStored(
                f"only {done} bytes of {cid} came from {self} in {seconds:.0f} s; at least "
                f"{self._least_speed:g} a second are waited for"
            )

    def _entry(self, cid: str) -> str:
        return f"{self._folder}/{cid}"


@contextmanager
def _unless(words: str) -> Iterator[None]:
    """Passes over a refusal for a reason in these words: what was asked was done before."""
    try:
        yield
    except Refused as fault:
        if not re.search(words, fault.said):
            raise
