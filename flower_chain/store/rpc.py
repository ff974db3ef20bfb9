"""The RPC of an IPFS node, Kubo's ``/api/v0``: as much of it as a store needs."""

import json
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import httpx

from flower_chain.endpoint import Endpoint
from flower_chain.errors import ConfigError, StoreError

Options = Mapping[str, str | int | bool]

MOST_ANSWERED = 2**26
"""Bytes that an answer may have, unless it is a file."""

MOST_SHOWN = 300
"""Characters of what a node wrote in an error."""


class NoConnection(StoreError):
    """No node can be reached, or the connection to it broke; it may be asked again."""


class Silence(StoreError):
    """The node was reached, and then nothing came for too long."""


class Refused(StoreError):
    """The node understood the question, and its answer is an error.

    Parameters
    ----------
    message : str
        In full, for people.
    said : str
        What the node wrote.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Rpc(ABC):
    """How a node is asked.

    All methods raise :class:`NoConnection`, :class:`Silence`, :class:`Refused`, or a plain
    StoreError if what answers is not the RPC of an IPFS node.

    Parameters
    ----------
    timeout : float
        Seconds without a byte after which the node counts as silent: before the first byte of an
        answer, in which the node may look for something elsewhere, and after any other.

    Raises
    ------
    ConfigError
        If that is not positive.
    """

    def __init__(self, timeout: float) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout = {timeout!r}: it must be a positive number of seconds")
        self.timeout = timeout

    @abstractmethod
    def ask(self, command: str, *args: str, options: Options | None = None) -> dict[str, Any]:
        """The answer to a command such as ``files/ls``; empty if it has none."""

    @abstractmethod
    def add(self, file: BinaryIO, options: Options) -> dict[str, Any]:
        """Send all that is in a file; the answer to ``add``."""

    @abstractmethod
    def cat(self, cid: str, offset: int) -> Iterator[bytes]:
        """The bytes under a CID from an offset on, as they come."""

    def close(self) -> None:  # noqa: B027 - not every one keeps something open
        """Close the connections."""

    def _no_connection(self, why: object) -> NoConnection:
        return NoConnection(
            f"no IPFS node answers at {self} ({why}): start one there, with `ipfs daemon`"
        )

    def _silence(self, command: str) -> Silence:
        return Silence(f"{self} sent nothing for {self.timeout:g} s ({command})")

    def _refused(self, command: str, said: str) -> Refused:
        return Refused(f"{self} refused {command}: {said[:MOST_SHOWN]}", said)

    def _not_rpc(self, command: str, said: object) -> StoreError:
        return StoreError(
            f"{self} answers {command} with {said}: is it the RPC of an IPFS node (port 5001), "
            "and may it be asked?"
        )


class HttpRpc(Rpc):
    """A node that is asked over HTTP.

    Parameters
    ----------
    url : str
        Of its RPC, without ``/api/v0``, such as ``http://127.0.0.1:5001``; a name and a password in
        it are sent by basic authentication. ``${NAME}`` stands for a variable of the environment.
        Neither its value nor the password is ever shown.
    timeout : float
        As in :class:`Rpc`.

    Raises
    ------
    ConfigError
        If `url` is none, or the environment lacks a variable that it names.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        super().__init__(timeout)
        self._endpoint = Endpoint(url)
        try:
            parsed = httpx.URL(self._endpoint.url.rstrip("/") + "/api/v0/")
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if not self._endpoint.is_http or not parsed.host:
            raise ConfigError(
                f"{str(self)!r} is not the URL of an IPFS node (http://... or https://...)"
            )
        self._client = httpx.Client(
            base_url=parsed.copy_with(userinfo=b""),
            auth=(parsed.username, parsed.password) if parsed.userinfo else None,
            # Not packed: a few bytes could unpack to any number of them.
            headers={"Accept-Encoding": "identity"},
            timeout=timeout,
            verify=_authorities(),
        )
        # At the level INFO, httpx logs the URL of every request.
        logging.getLogger("httpx").addFilter(self._endpoint.clean)

    def __str__(self) -> str:
        return str(self._endpoint)

    def ask(self, command: str, *args: str, options: Options | None = None) -> dict[str, Any]:
        with self._post(command, {"arg": args, **(options or {})}) as response:
            return self._parse(command, response)

    def add(self, file: BinaryIO, options: Options) -> dict[str, Any]:
        file.seek(0)
        with self._post("add", options, {"file": ("data", file)}) as response:
            return self._parse("add", response)

    def cat(self, cid: str, offset: int) -> Iterator[bytes]:
        with self._post("cat", {"arg": cid, "offset": offset}) as response:
            yield from response.iter_raw()

    def close(self) -> None:
        logging.getLogger("httpx").removeFilter(self._endpoint.clean)
        self._client.close()

    @contextmanager
    def _post(
        self,
        command: str,
        options: Mapping[str, Any],
        files: dict[str, tuple[str, BinaryIO]] | None = None,
    ) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("POST", command, params=options, files=files) as response:
                self._check(command, response)
                yield response
        except httpx.TimeoutException:
            raise self._silence(command) from None
        except httpx.TransportError as fault:
            why = self._endpoint.hide(str(fault)) or type(fault).__name__
            raise self._no_connection(why) from None

    def _check(self, command: str, response: httpx.Response) -> None:
        if response.is_success:
            return
        status = response.status_code
        said = self._parse(command, response).get("Message") if status == 500 else None
        if not isinstance(said, str):
            raise self._not_rpc(command, f"HTTP {status}")
        raise self._refused(command, self._endpoint.hide(said))

    def _parse(self, command: str, response: httpx.Response) -> dict[str, Any]:
        content = bytearray()
        for piece in response.iter_raw():
            content += piece
            if len(content) > MOST_ANSWERED:
                raise self._not_rpc(command, f"more than {MOST_ANSWERED} bytes")
        try:
            answer = json.loads(content or b"{}")
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._not_rpc(command, self._endpoint.hide(repr(bytes(content[:MOST_SHOWN]))))
        return answer


@cache
def _authorities() -> ssl.SSLContext:
    """Whom to believe who a node is; read once, as that takes longer than to ask a node nearby."""
    return httpx.create_ssl_context()
