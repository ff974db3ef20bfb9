"""Recompute a whole run from its ledger and its store.

Nothing of the strategy is used: signatures, verdicts and payments are recomputed from the rules and
from what the contract said. Whoever lacks a key or the owner's validation data gets everything
checked that needs neither, and is told what was not.
"""

from collections.abc import Iterator

from flower_chain.errors import ConfigError
from flower_chain.examiner import Examiner
from flower_chain.keys import Reader
from flower_chain.run import AnyRun, BlockFlowRun, DataTrustRun, PeersRun
from flower_chain.verify.base import Report
from flower_chain.verify.blockflow import BlockFlowVerifier
from flower_chain.verify.data_trust import DataTrustVerifier
from flower_chain.verify.record_and_reward import RecordAndRewardVerifier

__all__ = ["Report", "verify"]


def verify(
    run: AnyRun, reader: Reader | None = None, examiner: Examiner | None = None
) -> Iterator[Report]:
    """Check a run piece by piece; the report grows with each version or round.

    Parameters
    ----------
    run : RecordAndRewardRun, BlockFlowRun or DataTrustRun
    reader : Reader or None
        The key of who may open what is sealed: the owner under record-and-reward, an agent
        where these judge each other, or a reader that the plan names or to whom it was granted.
    examiner : Examiner or None
        The owner's validation data; where agents judge each other there are none.

    Yields
    ------
    Report
        The same one, after each version or round and at the end.

    Raises
    ------
    Unverified
        Naming the first record that does not fit.
    ConfigError
        If `reader` may not open what is sealed, or `examiner` has other data.
    """
    if examiner is not None and isinstance(run, PeersRun):
        raise ConfigError(f"a run of {run.scheme} has no Examiner: its agents judge each other")
    if isinstance(run, BlockFlowRun):
        return BlockFlowVerifier(run, reader).check()
    if isinstance(run, DataTrustRun):
        return DataTrustVerifier(run, reader).check()
    return RecordAndRewardVerifier(run, reader, examiner).check()
