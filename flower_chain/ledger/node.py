"""A node that is asked over HTTP, with patience."""

import logging
import random
import re
import time
from collections.abc import Iterator
from threading import Lock
from typing import Any, cast

import requests
from requests.exceptions import (
    ChunkedEncodingError,
    ContentDecodingError,
    RequestException,
    Timeout,
)
from requests.exceptions import ConnectionError as NotConnected
from web3.providers.base import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from flower_chain.endpoint import Endpoint
from flower_chain.errors import NodeError
from flower_chain.ledger.base import CallFailed

log = logging.getLogger(__name__)

NO_ANSWER = (NotConnected, Timeout, ChunkedEncodingError, ContentDecodingError)
BUSY = (408, 425, 429)
"""What a server answers that can be asked again, besides all from 502 on."""

BUSY_WORDS = re.compile(
    "rate limit|request rate|too many requests|per second|compute units|header not found"
    "|indexing is in progress",
    re.IGNORECASE,
)
"""What nodes write in an error that passes; their codes differ."""

FIRST_ANSWER = 10.0
"""Seconds to wait for a connection, and for the first answer of all."""

LONGEST_PAUSE = 10.0


class Refused(NodeError):
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


class Node(JSONBaseProvider):
    """A node's JSON-RPC endpoint, for web3.

    A question that gets no answer is asked again until `patience` is over. Only a node that has
    never answered is not waited for: its URL may be wrong.

    Parameters
    ----------
    url : str
        ``http`` or ``https``; ``${NAME}`` stands for a variable of the environment. Neither its
        value nor a password in the URL is ever shown.
    timeout : float
        Seconds to wait for one answer.
    patience : float
        Seconds to ask again for.

    Raises
    ------
    ConfigError
        If the environment lacks a variable that `url` names.
    NodeError
        If `url` is none.
    """

    def __init__(self, url: str, timeout: float, patience: float) -> None:
        super().__init__()
        self._endpoint = Endpoint(url)
        if not self._endpoint.is_http:
            raise NodeError(f"{str(self)!r} is not the URL of a node (http://... or https://...)")
        self._timeout = min(timeout, max(patience, 1.0))
        self._patience = patience
        self._session = requests.Session()
        self._has_answered = False
        self._away_since: float | None = None
        self._lock = Lock()
        # At the level DEBUG, urllib3 logs the path of every request.
        logging.getLogger("urllib3.connectionpool").addFilter(self._endpoint.clean)

    def __str__(self) -> str:
        return str(self._endpoint)

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """What the node answers, asked as often as it takes.

        Raises
        ------
        CallFailed
            If a contract reverted.
        Refused
            If the answer is another error.
        NodeError
            If there is no answer.
        """
        question = self.encode_rpc_request(method, params)
        begun = time.monotonic()
        answer = self._post(question)
        pauses = _pauses()
        while isinstance(answer, str):
            left = self._notice_silence(begun, answer)
            time.sleep(min(next(pauses), left))
            answer = self._post(question)
        self._notice_answer()
        error = answer.pop("error", None)
        if error is not None:
            raise self._refusal(method, error)
        return cast(RPCResponse, answer)

    def hide(self, text: str) -> str:
        """`text` in one line and without the secrets of the URL."""
        return self._endpoint.hide(text)

    def close(self) -> None:
        """Close the connections."""
        logging.getLogger("urllib3.connectionpool").removeFilter(self._endpoint.clean)
        self._session.close()

    def _post(self, question: bytes) -> dict[str, Any] | str:
        """The answer, or the reason why there is none."""
        wait = self._timeout if self._has_answered else FIRST_ANSWER
        headers = {"Content-Type": "application/json"}
        try:
            response = self._session.post(
                self._endpoint.url, question, headers=headers, timeout=(FIRST_ANSWER, wait)
            )
        except NO_ANSWER as fault:
            return type(fault).__name__
        except RequestException as fault:
            raise NodeError(f"{self} can't be asked: {type(fault).__name__}") from None
        status = response.status_code
        if status in BUSY or status >= 502:
            return f"HTTP {status}"
        answer = self._parse(response.content)
        if answer is None and 400 <= status < 500:
            raise Refused(f"{self} answers HTTP {status}", f"HTTP {status}")
        if answer is None:
            return f"HTTP {status}, not as a node should"
        return self.hide(_said(answer["error"])) if _is_busy(answer) else answer

    def _parse(self, content: bytes) -> dict[str, Any] | None:
        try:
            answer = self.decode_rpc_response(content)
        except ValueError:
            return None
        is_answer = isinstance(answer, dict) and ("result" in answer or "error" in answer)
        return cast(dict[str, Any], answer) if is_answer else None

    def _notice_silence(self, begun: float, why: str) -> float:
        """Seconds that the question may still be asked for."""
        now = time.monotonic()
        patience = self._patience if self._has_answered else 0.0
        if now - begun >= patience:
            tried = f", tried for {patience:g} s" if patience else ""
            raise NodeError(f"no node answers at {self} ({why}){tried}")
        with self._lock:
            if self._away_since is None:
                self._away_since = begun
                log.warning(
                    "no node answers at %s (%s): trying again for %g s", self, why, patience
                )
        return begun + patience - now

    def _notice_answer(self) -> None:
        self._has_answered = True
        with self._lock:
            if self._away_since is not None:
                away = time.monotonic() - self._away_since
                self._away_since = None
                log.info("%s answers again, after %.1f s", self, away)

    def _refusal(self, method: str, error: Any) -> CallFailed | Refused:
        if _is_revert(error):
            return CallFailed(_revert_data(error))
        said = self.hide(_said(error))
        return Refused(f"{self} refused {method}: {said}", said)


def _pauses() -> Iterator[float]:
    """Ever longer, and never the same for two who wait for one node."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(2 * pause, LONGEST_PAUSE)


def _is_busy(answer: dict[str, Any]) -> bool:
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code == 429 or (error is not None and bool(BUSY_WORDS.search(_said(error))))


def _said(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _is_revert(error: Any) -> bool:
    if not isinstance(error, dict):
        return False
    return error.get("code") == 3 or bool(_revert_data(error)) or "revert" in _said(error).lower()


def _revert_data(error: dict[str, Any]) -> bytes:
    found = re.fullmatch("(?:Reverted )?0x((?:[0-9a-fA-F]{2})*)", str(error.get("data")))
    return bytes.fromhex(found[1]) if found else b""
