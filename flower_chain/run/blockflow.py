"""A BlockFLow experiment on disk."""

from eth_account.signers.local import LocalAccount

from flower_chain.ledger import Ledger
from flower_chain.ledger.blockflow import Experiment, Terms
from flower_chain.plan import BlockFlowPlan
from flower_chain.run.peers import PeersRun


class BlockFlowRun(PeersRun):
    """A BlockFLow experiment, open.

    Attributes
    ----------
    plan : BlockFlowPlan
    """

    scheme = "blockflow"
    contract_name = "BlockFlow"
    plan: BlockFlowPlan

    def _find(self, account: LocalAccount | None) -> None:
        self.experiment = Experiment(self.contract, account)

    @classmethod
    def _deploy(
        cls,
        ledger: Ledger,
        owner: LocalAccount,
        token: str,
        plan: BlockFlowPlan,
        model: tuple[bytes, bytes],
    ) -> Experiment:
        made = Experiment.deploy(ledger, owner, token, _terms(plan), plan.accounts)
        made.publish(0, *model)
        return made


def _terms(plan: BlockFlowPlan) -> Terms:
    amounts = plan.bond, plan.stake
    frame = plan.digest, plan.rounds, plan.quorum
    return Terms(*frame, *amounts, plan.seconds, plan.auditors)
