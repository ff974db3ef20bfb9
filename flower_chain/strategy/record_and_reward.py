"""papers/1: record and reward federated learning contributions."""

import secrets

from flower_chain.plan import Plan
from flower_chain.records import to_ppm
from flower_chain.rules.record_and_reward import Rule
from flower_chain.strategy.admission import Admission
from flower_chain.strategy.base import LedgerStrategy
from flower_chain.updates import Format


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

    def _plan(self, model: Format) -> Plan:
        settings = self.settings
        return Plan(
            run=secrets.token_hex(16),
            model=model,
            rule=Rule.named(settings.rule),
            threshold_ppm=to_ppm(settings.threshold),
            gain_ppm=to_ppm(settings.gain),
            clear_ppm=to_ppm(settings.clear),
            harm_ppm=to_ppm(settings.harm),
            least_ppm=to_ppm(settings.least),
            rate=settings.rate_units,
            max_data_cost=settings.max_data_cost,
            patience_s=settings.patience,
            aggregation="mean" if self._is_mean else "inner",
            inner=type(self.strategy).__name__,
            learning_rate=float(settings.learning_rate),
            samples_per_class=settings.samples_per_class,
            validation_digest=self._examiner.digest,
            tolerance_ppm=to_ppm(settings.tolerance),
            readers=settings.reader_keys(),
        )

    def _evidence_fits(self, admission: Admission) -> bool:
        assert admission.signed is not None
        assert admission.trained is not None
        contribution = admission.signed.contribution
        samples = self._samples(contribution.device, contribution.classes)
        return self._examiner.confirms(
            self._run.plan.rule,
            contribution.errors,
            (self._received, admission.trained),
            (samples.x, samples.y),
            self._run.plan.tolerance_ppm,
        )
