"""The last contribution that a device made, kept: whoever asks for it again gets the same."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from flower_chain import durable, messages
from flower_chain.store import DirectoryStore
from flower_chain.store.cid import cid_from_bytes

BYTES = ("digest", "cid", "signature")
"""What JSON holds in hex."""


@dataclass(frozen=True)
class Kept:
    """What is in an outbox.

    Parameters
    ----------
    content : RecordDict
        What the device sent, the sealed update with it.
    rounds : int
        How many rounds the device has paid for from its privacy budget, this one included.
    """

    content: RecordDict
    rounds: int

    @property
    def version(self) -> int:
        """The version of the model that it is for."""
        return messages.read_contribution(self.content)[0].contribution.version


class Outbox:
    """A folder with one contribution, which is there whole or not at all.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, sealed: bytes, content: RecordDict, rounds: int = 0) -> None:
        """Keep a contribution in place of the one before; see :class:`Kept`."""
        cid = DirectoryStore(self._folder).put(sealed)
        kept = {
            "record": dict(content.config_records[messages.RECORD]),
            "metrics": {name: dict(record) for name, record in content.metric_records.items()},
            "rounds": rounds,
        }
        durable.replace(self._file, json.dumps(kept, default=bytes.hex).encode())
        for old in self._folder.iterdir():
            if old.name not in (cid, self._file.name):
                old.unlink()

    def read(self) -> Kept | None:
        """What is kept, if anything is."""
        if not self._file.exists():
            return None
        kept: dict[str, Any] = json.loads(self._file.read_bytes())
        record = kept["record"] | {name: bytes.fromhex(kept["record"][name]) for name in BYTES}
        content = RecordDict({name: MetricRecord(m) for name, m in kept["metrics"].items()})
        content[messages.RECORD] = ConfigRecord(record)
        signed, _ = messages.read_contribution(content)
        sealed = DirectoryStore(self._folder).get(cid_from_bytes(signed.contribution.cid))
        messages.write_contribution(content, signed, sealed)
        return Kept(content, kept["rounds"])

    @property
    def _file(self) -> Path:
        return self._folder / "contribution.json"
