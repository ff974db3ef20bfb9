"""What happened in a run, from its ledger, as tables and as JSON."""

from flower_chain.report import access, blockflow, data_trust, record_and_reward
from flower_chain.report.base import Summary
from flower_chain.run import AnyRun, BlockFlowRun, DataTrustRun

__all__ = ["Summary", "summary_of"]


def summary_of(run: AnyRun) -> Summary:
    """What happened in a run of whatever scheme, and who was given access to what is sealed."""
    given = run.access()
    files = run.sealed_files() if given.grants else []
    return access.Shared(_of_the_scheme(run), access.summarise(given, files))


def _of_the_scheme(run: AnyRun) -> Summary:
    if isinstance(run, BlockFlowRun):
        return blockflow.summarise(run.experiment)
    if isinstance(run, DataTrustRun):
        return data_trust.summarise(run.experiment)
    federation = run.federation
    return record_and_reward.summarise(
        federation.history(), federation.contract.address, federation.pool, run.plan.budget
    )
