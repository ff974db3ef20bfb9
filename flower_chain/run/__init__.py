"""A run on disk: where its ledger is, what was agreed, and what is stored.

::

    RUN/
    ├── run.json         where the contract is; no secrets
    ├── ledger.journal   the embedded ledger, if the run uses it
    ├── store/           every model, and all that is sealed, unless an IPFS node was named
    ├── lock             held by the server while it runs
    └── owner.key        the owner's account, unless another key file was named

The ledger and the store are all that a run needs to be continued after its server was killed;
``run.json`` says where they are.
"""

from pathlib import Path

from eth_account.signers.local import LocalAccount

from flower_chain.run.base import (
    EMBEDDED,
    FILE,
    TOKEN_SUPPLY,
    Content,
    Pointers,
    Run,
    SealedFile,
    scheme_in,
)
from flower_chain.run.blockflow import BlockFlowRun
from flower_chain.run.data_trust import DataTrustRun
from flower_chain.run.peers import PeersRun
from flower_chain.run.record_and_reward import Funds, RecordAndRewardRun

__all__ = [
    "EMBEDDED",
    "FILE",
    "TOKEN_SUPPLY",
    "AnyRun",
    "BlockFlowRun",
    "Content",
    "DataTrustRun",
    "Funds",
    "PeersRun",
    "Pointers",
    "RecordAndRewardRun",
    "Run",
    "SealedFile",
    "open_run",
]

AnyRun = RecordAndRewardRun | BlockFlowRun | DataTrustRun

RUNS: dict[str, type[RecordAndRewardRun] | type[BlockFlowRun] | type[DataTrustRun]] = {
    kind.scheme: kind for kind in (RecordAndRewardRun, BlockFlowRun, DataTrustRun)
}


def open_run(
    path: Path,
    account: LocalAccount | None = None,
    where: str | None = None,
    store: str | None = None,
) -> AnyRun:
    """Open a run of whatever scheme; otherwise as :meth:`Run.open`."""
    return RUNS[scheme_in(path)].open(path, account, where, store=store)
