"""A data trust's task on disk."""

from eth_account.signers.local import LocalAccount

from flower_chain.ledger import Ledger
from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.data_trust import Task, TaskTerms
from flower_chain.plan import DataTrustPlan
from flower_chain.run.peers import PeersRun


class DataTrustRun(PeersRun):
    """A data trust's task, open.

    Attributes
    ----------
    plan : DataTrustPlan
    experiment : Task
    """

    scheme = "data-trust"
    contract_name = "DataTrust"
    plan: DataTrustPlan
    experiment: Task

    def _find(self, account: LocalAccount | None) -> None:
        self.experiment = Task(self.contract, account)

    def fund(self) -> None:
        """Send what is missing of the reward, as the requester, unless that is too late."""
        held = self.contract.call("held")
        missing = held - self.contract.call("pool")
        if self.experiment.progress.stage is Stage.ENROL and missing > 0:
            assert self._account is not None
            self.token.transact(self._account, "transfer", self.contract.address, missing)

    @classmethod
    def _deploy(
        cls,
        ledger: Ledger,
        owner: LocalAccount,
        token: str,
        plan: DataTrustPlan,
        model: tuple[bytes, bytes],
    ) -> Task:
        return Task.create(ledger, owner, token, _terms(plan, model), plan.accounts)


def _terms(plan: DataTrustPlan, model: tuple[bytes, bytes]) -> TaskTerms:
    frame = plan.rounds, plan.quorum, plan.bond, plan.reward
    return TaskTerms(plan.digest, *model, *frame, plan.rule, plan.seconds)
