"""papers/3: BlockFLow, in which every agent audits every model."""

from logging import INFO

from flwr.common import log
from flwr.serverapp.strategy import Strategy

from flower_chain.ledger.blockflow import Round
from flower_chain.records import TOKEN_UNITS
from flower_chain.rules.blockflow import ONE
from flower_chain.run import BlockFlowRun
from flower_chain.strategy.peers import PeersStrategy, require_mean
from flower_chain.strategy.settings import BlockFlowSettings


class BlockFlow(PeersStrategy):
    """Every agent audits every model, commits to its scores and reveals them; no one is trusted.

    In every round the devices train, open each other's models, and score each on their own data
    with the user's ``evaluate()``. The contract computes each agent's overall score, which is the
    weight of its model and its share of what all have at stake. This server relays: it can't open
    a model, and the agents, who compute the next model themselves, refuse to train on another.

    Source: V. Mugunthan, R. Rahman, L. Kagal: "BlockFLow: An Accountable and Privacy-Preserving
    Solution for Federated Learning" (papers/3); see docs/blockflow.md.

    Parameters
    ----------
    strategy : Strategy
        FedAvg, or a strategy that only samples, configures and evaluates in its own way: the
        agents must be able to compute the aggregate.
    settings : BlockFlowSettings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.

    Examples
    --------
    ::

        strategy = BlockFlow(FedAvg(), BlockFlowSettings(run="runs/first", metric="f1"))
        strategy.start(grid, initial_arrays, num_rounds=10)
    """

    settings: BlockFlowSettings
    kind = BlockFlowRun
    _run: BlockFlowRun

    def __init__(self, strategy: Strategy, settings: BlockFlowSettings) -> None:
        require_mean(strategy)
        super().__init__(strategy, settings)

    def _log_terms(self) -> None:
        plan = self._run.plan
        bond, stake = plan.bond / TOKEN_UNITS, plan.stake / TOKEN_UNITS
        log(INFO, "\t│\t├── Agents: %d, quorum %d", len(plan.accounts), plan.quorum)
        log(INFO, "\t│\t├── Bond: %g tokens each, %g of them at stake in a round", bond, stake)
        log(INFO, "\t│\t├── Scored by: %r", plan.metric)

    def _tell(self, done: Round) -> None:
        told = ", ".join(f"{n}: {p / ONE:.3f}" for n, p in done.overall.items())
        log(INFO, "Overall scores of the agents: %s", told or "none, all get the same")
