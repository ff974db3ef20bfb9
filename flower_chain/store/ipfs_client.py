"""The RPC of an IPFS node, by a client of the package ``ipfshttpclient`` (extra of that name)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, BinaryIO

from ipfshttpclient import Client, exceptions
from requests.exceptions import RequestException
from urllib3.exceptions import ReadTimeoutError

from flower_chain.store.rpc import Options, Rpc


class ClientRpc(Rpc):
    """A node that is asked by somebody's client, with its address, session and credentials.

    Parameters
    ----------
    client : ipfshttpclient.Client
        It stays open when the store is closed. ``ipfshttpclient.connect()`` refuses nodes that are
        newer than itself; ``ipfshttpclient.Client()`` does not.
    timeout : float
        As in :class:`Rpc`; the client's own does not count.
    """

    def __init__(self, client: Client, timeout: float = 30.0) -> None:
        super().__init__(timeout)
        self._client = client

    def __str__(self) -> str:
        return "ipfshttpclient"

    def ask(self, command: str, *args: str, options: Options | None = None) -> dict[str, Any]:
        # files/ls is client.files.ls
        method: Callable[..., Any] = reduce(getattr, command.split("/"), self._client)
        with self._told(command):
            answer = method(*args, opts=dict(options or {}), timeout=self.timeout)
        return dict(answer.as_json()) if hasattr(answer, "as_json") else {}

    def add(self, file: BinaryIO, options: Options) -> dict[str, Any]:
        file.seek(0)
        with self._told("add"):
            answer = self._client.add(
                file,
                raw_leaves=options["raw-leaves"],
                pin=options["pin"],
                opts=dict(options),
                timeout=self.timeout,
            )
        return dict(answer.as_json())

    def cat(self, cid: str, offset: int) -> Iterator[bytes]:
        with self._told("cat"):
            opts = {"offset": offset}
            with self._client.cat(cid, stream=True, opts=opts, timeout=self.timeout) as pieces:
                yield from pieces

    @contextmanager
    def _told(self, command: str) -> Iterator[None]:
        """What goes wrong, in the words of :class:`Rpc`."""
        try:
            yield
        except exceptions.TimeoutError:
            raise self._silence(command) from None
        except exceptions.ErrorResponse as fault:
            raise self._refused(command, str(fault)) from None
        except (exceptions.StatusError, exceptions.DecodingError) as fault:
            raise self._not_rpc(command, fault) from None
        except (exceptions.CommunicationError, RequestException) as fault:
            if fault.args and isinstance(fault.args[0], ReadTimeoutError):
                raise self._silence(command) from None
            raise self._no_connection(type(fault).__name__) from None
