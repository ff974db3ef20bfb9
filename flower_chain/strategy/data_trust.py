"""papers/4: a data trust, whose workers score each other, and whose best are paid."""

from collections.abc import Mapping
from logging import INFO, WARNING

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    FedAvg,
    Strategy,
)

from flower_chain import audit_messages
from flower_chain.errors import ConfigError, FormatError, SealError, StoreError
from flower_chain.ledger.blockflow import Round, Stage
from flower_chain.ledger.data_trust import Verdict
from flower_chain.messages import record_of
from flower_chain.records import TOKEN_UNITS, Leave, SignedBy, TrainedModel
from flower_chain.rules.blockflow import ONE
from flower_chain.run import DataTrustRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.strategy.base import SUPERLINK, as_model, keep_common_metrics
from flower_chain.strategy.central_dp import check_arrays, check_central_dp, fit_noise
from flower_chain.strategy.peers import PeersStrategy, Said, require_mean
from flower_chain.strategy.settings import DataTrustSettings
from flower_chain.updates import Arrays, Format, check_finite, unpack, weighted_mean


class DataTrust(PeersStrategy):
    """Workers score each other's models; the best are paid, who breaks a rule loses its deposit.

    In every round the devices, here called workers, fetch each other's models, score them with the
    user's ``evaluate()`` by accuracy, precision and recall, and go on from the mean of those that
    are good enough. The contract ranks the workers by the median of the others' scores and by their
    consistency, and shares the round's part of the requester's reward. This server relays, and may
    be told to aggregate; it has no say in who is paid.

    Source: A. Jaberzadeh et al.: "Blockchain-Based Federated Learning: Incentivizing Data Sharing
    and Penalizing Dishonest Behavior" (papers/4), figure 2; see docs/data-trust.md.

    Parameters
    ----------
    strategy : Strategy
        FedAvg, or a strategy that only samples, configures and evaluates in its own way: the
        workers must be able to compute the aggregate. Any, if the server aggregates.
    settings : DataTrustSettings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.

    Examples
    --------
    ::

        strategy = DataTrust(FedAvg(), DataTrustSettings(run="runs/first", reward=50.0, places=2))
        strategy.start(grid, initial_arrays, num_rounds=10)
    """

    settings: DataTrustSettings
    kind = DataTrustRun
    _run: DataTrustRun

    def __init__(self, strategy: Strategy, settings: DataTrustSettings) -> None:
        self._is_mean = type(strategy).aggregate_train is FedAvg.aggregate_train
        if settings.aggregation != "server":
            require_mean(strategy)
        check_central_dp(strategy)
        if isinstance(strategy, DifferentialPrivacyClientSideAdaptiveClipping):
            raise ConfigError(
                f"{type(strategy).__name__}: workers don't tell whether a model was clipped; take "
                "DifferentialPrivacyServerSideAdaptiveClipping"
            )
        super().__init__(strategy, settings)
        self._leaves: dict[int, SignedBy[Leave]] = {}

    def _open(self, grid: Grid, model: Arrays) -> Arrays:
        check_arrays(self.strategy, Format.of(model))
        return super()._open(grid, model)

    def _log_terms(self) -> None:
        plan = self._run.plan
        log(INFO, "\t│\t├── Workers: %d, quorum %d", len(plan.accounts), plan.quorum)
        log(INFO, "\t│\t├── Deposit: %g tokens each", plan.bond / TOKEN_UNITS)
        reward = plan.reward / TOKEN_UNITS
        log(INFO, "\t│\t├── Reward: %g tokens, to %d workers a round", reward, plan.places)
        log(INFO, "\t│\t├── Scored by: %s", ", ".join(plan.metrics))
        log(INFO, "\t│\t├── Aggregated by: %s", plan.aggregation)

    def _enrol(self) -> None:
        """Send the reward, without which nobody can join, and have the workers join."""
        self._run.fund()
        super()._enrol()

    # -- leaving ------------------------------------------------------------------------------

    def _hear_more(self, agent: int, answer: RecordDict) -> None:
        """Note that a worker leaves when the round is over."""
        for leave, signature in audit_messages.read_said(answer, Leave):
            self._check_author(agent, leave)
            if not self._run.peers.is_signed(leave, signature):
                raise FormatError("a leave that it did not sign")
            self._leaves[agent] = leave, signature

    def _score(self, said: Said) -> None:
        """Record who leaves, and have the contract judge all workers that are left."""
        experiment = self._run.experiment
        if self._leaves and experiment.progress.stage in (Stage.REVEAL, Stage.SCORE):
            experiment.depart(list(self._leaves.values()))
        self._leaves.clear()
        super()._score(said)

    def _pay_out(self) -> None:
        """Credit those that left before the end, too."""
        super()._pay_out()
        verdicts = self._run.experiment.history().verdicts.values()
        self._run.experiment.claim([worker for verdict in verdicts for worker in verdict.left])

    def _tell(self, done: Round) -> None:
        verdict = self._run.experiment.history().verdicts.get(done.number, Verdict())
        told = ", ".join(f"{n}: {q / ONE:.3f}" for n, q in verdict.qualities.items())
        log(INFO, "Qualities of the workers: %s", told or "none, nobody computed them in time")
        paid = ", ".join(f"{n}: {a / TOKEN_UNITS:g}" for n, a in verdict.earned.items())
        log(INFO, "Tokens earned: %s", paid or "none")
        for worker in verdict.far:
            log(WARNING, "Worker %d lost its deposit: a score too far from the median", worker)
        for worker in verdict.poor:
            log(WARNING, "Worker %d lost its deposit: below the floor for too long", worker)
        for worker in verdict.left:
            log(INFO, "Worker %d left, with its deposit", worker)

    # -- the server aggregates ------------------------------------------------------------------

    def _conclude(self, number: int) -> Arrays:
        """The model that a round ended with; announced."""
        if not self._run.plan.server_aggregates:
            return super()._conclude(number)
        arrays = self._aggregate(number)
        self._run.publish(number + 1, arrays)
        return arrays

    def _aggregate(self, number: int) -> Arrays:
        """What the inner strategy makes of the models that are good enough."""
        done = self._run.experiment.history().rounds[number]
        rows = {worker: opening.row for worker, opening in done.openings.items()}
        weights = self._run.peers.weights(rows, {})
        models = self._opened([done.contributions[w] for w, weight in weights.items() if weight])
        if not models:
            return self._received
        if self._is_mean:
            return weighted_mean(list(models.values()), [1] * len(models))
        fit_noise(self.strategy, len(models))
        combined, _ = self.strategy.aggregate_train(number + 1, self._replies(number, models))
        try:
            arrays = self._received if combined is None else as_model(combined, self._received)
            check_finite(arrays)
        except FormatError as fault:
            log(WARNING, "The aggregate is no model (%s): the next one is the same.", fault)
            return self._received
        return arrays

    def _opened(self, trained: list[TrainedModel]) -> dict[int, Arrays]:
        """The models of workers, as far as they can be opened."""
        opened: dict[int, Arrays] = {}
        for model in trained:
            try:
                sealed = self._run.store.get(
                    cid_from_bytes(model.cid), self._run.peers.sealed_bytes
                )
                opened[model.agent] = unpack(self._run.peers.open(model, sealed, self._owner))
            except (StoreError, FormatError, SealError) as fault:
                log(WARNING, "The model of worker %d is left out: %s", model.agent, fault)
        return opened

    def _replies(self, number: int, models: Mapping[int, Arrays]) -> list[Message]:
        """The models as an inner strategy expects them, each with the weight 1."""
        if self._configured != number:  # another process did
            self._inner_task(record_of(self._received), ConfigRecord())
        told = self._said_in(number).metrics
        replies = []
        for worker, arrays in models.items():
            metrics = MetricRecord({**told.get(worker, {}), self._weight_key: 1.0})
            content = RecordDict({self._arrays_key: record_of(arrays), "metrics": metrics})
            replies.append(Message(content, SUPERLINK, MessageType.TRAIN))
        keep_common_metrics([reply.content.metric_records["metrics"] for reply in replies])
        return replies
