"""papers/1: record and reward federated learning contributions."""

from flower_chain.strategy.admission import Admission
from flower_chain.strategy.base import LedgerStrategy
from flower_chain.updates import apply


class RecordAndReward(LedgerStrategy):
    """Accepts an update for its class-sampled validation error, and pays for its data.

    Source: I. Martinez, S. Francis, A. S. Hafid: "Record and Reward Federated Learning
    Contributions with Blockchain" (papers/1). Settings choose between its rules and a better one,
    the default; see :mod:`flower_chain.rules.record_and_reward`.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy.
    examiner : Examiner
        The owner's validation data, and how a model is used on them.
    settings : Settings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.

    Examples
    --------
    ::

        strategy = RecordAndReward(FedAvg(), Examiner(x, y, predict), Settings(run="runs/first"))
        strategy.start(grid, initial_arrays, num_rounds=10)
    """

    def _evidence_fits(self, admission: Admission) -> bool:
        assert admission.signed is not None
        assert admission.update is not None
        contribution = admission.signed.contribution
        return self._examiner.confirms(
            self._run.plan.rule,
            contribution.errors,
            (self._received, apply(self._received, admission.update)),
            self._examiner.choose(*self._draw(contribution.device, contribution.classes)),
            self._run.plan.tolerance_ppm,
        )
