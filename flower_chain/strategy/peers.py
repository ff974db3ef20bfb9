"""What the schemes share in which agents judge each other: the stages of a round."""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import INFO, WARNING
from typing import Any, ClassVar, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from flower_chain import audit_messages, messages, updates
from flower_chain.errors import (
    ConfigError,
    Damaged,
    FormatError,
    NotStored,
    Reverted,
    RunEnded,
    StoreError,
    TooLarge,
)
from flower_chain.ledger.blockflow import Permit, Progress, Rejection, Round, Stage
from flower_chain.messages import Request, record_of
from flower_chain.plan import PeersPlan
from flower_chain.records import (
    Aggregate,
    BondPermit,
    Commitment,
    Retrieval,
    Scores,
    SignedBy,
    Task,
    TrainedModel,
    recover,
    sign,
)
from flower_chain.rules.blockflow import ONE
from flower_chain.run import PeersRun
from flower_chain.store.cid import cid_from_bytes, cid_of
from flower_chain.strategy.agents import Agents
from flower_chain.strategy.base import (
    LedgerStrategy,
    keep_common_metrics,
    numpy_of,
    of_innermost,
)
from flower_chain.strategy.settings import PeersSettings
from flower_chain.updates import Arrays, Format

Item = TypeVar("Item")
Other = TypeVar("Other")
Kind = TypeVar("Kind", TrainedModel, Retrieval, Commitment, Aggregate)

SLACK = 5.0
"""Seconds after a deadline in which a chain should have made a block."""

PAUSE = 1.0
"""Seconds between two questions to an agent that has not done what it was asked for."""


@dataclass
class Said:
    """What agents said in a round, by number.

    Parameters
    ----------
    models, retrievals, commitments : dict
        As they were signed.
    openings : dict of int to Scores
    metrics : dict of int to MetricRecord
        What ``train()`` returned.
    """

    models: dict[int, SignedBy[TrainedModel]] = field(default_factory=dict)
    retrievals: dict[int, SignedBy[Retrieval]] = field(default_factory=dict)
    commitments: dict[int, SignedBy[Commitment]] = field(default_factory=dict)
    openings: dict[int, Scores] = field(default_factory=dict)
    metrics: dict[int, MetricRecord] = field(default_factory=dict)


class PeersStrategy(LedgerStrategy):
    """A round in which devices train, open each other's models, score them, and reveal the scores.

    This server relays: the devices, here called agents, believe only what is signed or opens what
    was signed, and the contract judges.

    Parameters
    ----------
    strategy : Strategy
        FedAvg, or a strategy that only samples, configures and evaluates in its own way, where the
        agents compute the aggregate; else any other.
    settings : PeersSettings

    Raises
    ------
    ConfigError
        If the settings don't fit the strategy.
    """

    settings: PeersSettings
    kind: ClassVar[type[PeersRun]]
    _run: PeersRun

    def __init__(self, strategy: Strategy, settings: PeersSettings) -> None:
        fraction = getattr(strategy, "fraction_train", 1.0)
        if fraction != 1.0:
            raise ConfigError(
                f"fraction_train = {fraction}: all agents train in every round, or lose their bonds"
            )
        super().__init__(strategy, settings)
        self._rounds_said: dict[int, Said] = {}
        self._configured = -1
        self._with_store: set[int] = set()

    @abstractmethod
    def _tell(self, done: Round) -> None:
        """Log what the contract made of a round."""

    def _hear_more(self, _agent: int, _answer: RecordDict) -> None:
        """Note what else an agent says with its scores; FormatError costs it that answer."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Prepare what agents are asked to train with, and what they need to check the model.

        They are asked in :meth:`aggregate_train`, as in all other stages: Flower would wait for who
        is silent, whatever is left of the time to train, and send to nodes that are gone.
        """
        self._number = self._done + server_round - 1
        if self._run.experiment.progress.stage is Stage.FINISHED:
            raise RunEnded(f"the run ended after round {self._number}: not enough agents are left")
        self._received = numpy_of(arrays)
        content = self._inner_task(arrays, config)
        content[messages.RECORD] = self._request(self._number, self._received)
        content[audit_messages.STAGE] = audit_messages.write_stage(audit_messages.TRAIN)
        if self._number > 0:
            self._write_verdict(content, self._number - 1)
        self._task = content
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Relay what the agents say in all stages of the round, and fetch the model of the next."""
        said = self._said_in(self._number)
        self._train(said)
        self._retrieve(said)
        self._commit(said)
        self._reveal(said)
        self._score(said)
        arrays = self._conclude(self._number)
        self._run.let_go()
        return record_of(arrays), self._metrics(said)

    def _inner_task(self, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        """What the inner strategy asks its nodes to train with."""
        self._configured = self._number
        everyone = cast(Grid, _Everyone(self._agents.stand_ins()))
        inner = self.strategy.configure_train(self._number + 1, arrays, config, everyone)
        return RecordDict(dict(next(iter(inner)).content))

    # -- beginning ------------------------------------------------------------------------------

    def _prepare(
        self, num_rounds: int, timeout: float, evaluate_config: ConfigRecord | None
    ) -> float:
        self.settings.check_rounds(num_rounds)
        self._evaluate_config = evaluate_config or ConfigRecord()
        # Flower waits for the evaluations of a model, while the next round's training has begun.
        return min(timeout, self.settings.train_seconds / 4)

    def _open(self, grid: Grid, model: Arrays) -> Arrays:
        self._agents = Agents(grid, self._hear, self._hello_timeout)
        settings, rounds = self.settings, self._rounds

        def plan_of(agents: Sequence[bytes]) -> PeersPlan:
            digest = updates.digest_of(model)
            return settings.plan(Format.of(model), digest, self._inner, rounds, agents)

        self._run = self.kind.start(
            settings.path,
            settings.ledger,
            self._owner,
            model,
            self._gather,
            plan_of,
            settings.token_address,
            settings.confirmations,
            settings.store,
        )
        try:
            experiment = self._run.experiment
            self._agents.enlist(experiment.domain.chain_id, experiment.agents)
            return self._current()
        except BaseException:
            self._run.close()
            raise

    def _gather(self, chain_id: int) -> list[bytes]:
        """The public keys of who wants to take part, once there are enough nodes."""
        needs = [
            of_innermost(self.strategy, f"min_{kind}_nodes", 2) for kind in ("available", "train")
        ]
        enough, wanted = max(*map(int, needs), 1), set(self._allowlist or ())
        found = self._agents.gather(chain_id, wanted, enough) - {self._owner.address}
        if len(agents := wanted or found) < enough:
            raise ConfigError(
                f"{len(agents)} agents want to take part, but the strategy needs {enough}"
            )
        return [self._public_keys[account] for account in sorted(agents)]

    def _current(self) -> Arrays:
        """Enrol the agents if that is left to do, and tell the model of the current round."""
        run, experiment = self._run, self._run.experiment
        self._number = 0
        if experiment.progress.stage is Stage.ENROL:
            first = run.model(0)
            assert first is not None
            self._received = first
            self._enrol()
        self._pay_out()
        self._done = run.done()
        model = run.model(self._done)
        if model is not None:
            return model
        self._number = self._done - 1
        begun_with = run.model(self._number)
        assert begun_with is not None
        self._received = begun_with
        return self._conclude(self._number)

    def _enrol(self) -> None:
        """Have the agents post their bonds."""
        run = self._run
        experiment, deadline = run.experiment, run.experiment.progress.deadline
        permits: dict[int, BondPermit] = {}

        def content(agent: int) -> RecordDict:
            account = experiment.agents[agent]
            permits[agent] = experiment.bond_permit(run.token, account, deadline)
            told = audit_messages.write_permit(permits[agent])
            asked = self._question(audit_messages.JOIN, **told)
            asked[self._arrays_key] = record_of(self._received)
            return asked

        def read(agent: int, answer: RecordDict) -> Permit:
            signature = audit_messages.read_stage(answer).get("signature")
            if not isinstance(signature, bytes):
                raise FormatError("no permit")
            if recover(permits[agent].encode(), signature) != experiment.agents[agent]:
                raise FormatError("a permit that it did not sign")
            return Permit(agent, deadline, signature)

        def relay(signed: Mapping[int, Permit]) -> list[Rejection]:
            return experiment.join(list(signed.values()))

        self._let_act(Stage.ENROL, content, read, relay)
        if experiment.progress.stage is Stage.FINISHED:
            self._pay_out()
            acted = len(experiment.progress.live)
            raise RunEnded(f"{acted} agents posted their bonds: the quorum is {run.plan.quorum}")

    # -- stages ---------------------------------------------------------------------------------

    def _train(self, said: Said) -> None:
        run, peers = self._run, self._run.peers

        def read(agent: int, answer: RecordDict) -> SignedBy[TrainedModel]:
            model, signature = self._signed(agent, answer, TrainedModel)
            sealed = messages.read_sealed(answer)
            if sealed is None:
                sealed = self._find(model)
                self._with_store.add(agent)
            if len(sealed) != peers.sealed_bytes:
                size = len(sealed)
                raise FormatError(f"a sealed model of {size} bytes, not {peers.sealed_bytes}")
            if (cid := cid_of(sealed)) != (named := cid_from_bytes(model.cid)):
                raise FormatError(f"the bytes of {cid}, but {named} was signed")
            # Also what was found: on a node of the agent's own it may not stay.
            run.store.put(sealed)
            for metrics in answer.metric_records.values():
                said.metrics[agent] = metrics
            return model, signature

        def relay(models: Mapping[int, SignedBy[TrainedModel]]) -> list[Rejection]:
            rejections = run.experiment.submit(list(models.values()))
            said.models |= _accepted(models, rejections)
            return rejections

        self._let_act(Stage.TRAIN, lambda _: self._task, read, relay, MessageType.TRAIN)

    def _retrieve(self, said: Said) -> None:
        run = self._run
        self._catch_up(said, said.models)
        content = self._question(audit_messages.RETRIEVE)
        content[audit_messages.SAID] = audit_messages.write_said(said.models.values())
        whole = RecordDict(dict(content))
        progress = run.experiment.progress
        if progress.stage is Stage.RETRIEVE and set(progress.awaited) - self._with_store:
            sealed = [
                (agent, self._sealed(model)) for agent, (model, _) in sorted(said.models.items())
            ]
            whole[audit_messages.MODELS] = audit_messages.write_models(sealed)

        def relay(retrievals: Mapping[int, SignedBy[Retrieval]]) -> list[Rejection]:
            rejections = run.experiment.retrieve(list(retrievals.values()))
            said.retrievals |= _accepted(retrievals, rejections)
            return rejections

        self._let_act(
            Stage.RETRIEVE,
            # Who has a store fetches the models itself.
            lambda agent: content if agent in self._with_store else whole,
            lambda a, r: self._signed(a, r, Retrieval),
            relay,
        )

    def _find(self, model: TrainedModel) -> bytes:
        """A model that was not sent along, from the store; FormatError if it is not there."""
        try:
            return self._run.store.get(cid_from_bytes(model.cid), self._run.peers.sealed_bytes)
        except (NotStored, Damaged, TooLarge) as fault:
            raise FormatError(f"its model: {fault}") from fault

    def _sealed(self, model: TrainedModel) -> bytes:
        """A model's bytes; nothing if they are not here, as when another relay had them."""
        try:
            return self._run.store.get(cid_from_bytes(model.cid))
        except (FormatError, StoreError) as fault:
            log(WARNING, "The model of agent %d is not passed on: %s", model.agent, fault)
            return b""

    def _commit(self, said: Said) -> None:
        self._catch_up(said, said.retrievals)
        content = self._question(audit_messages.COMMIT, **{"arrays-key": self._arrays_key})
        content[audit_messages.SAID] = audit_messages.write_said(said.retrievals.values())
        config = ConfigRecord({**self._evaluate_config, "server-round": self._number + 1})
        content[of_innermost(self.strategy, "configrecord_key", "config")] = config

        def relay(commitments: Mapping[int, SignedBy[Commitment]]) -> list[Rejection]:
            rejections = self._run.experiment.commit(list(commitments.values()))
            said.commitments |= _accepted(commitments, rejections)
            return rejections

        self._let_act(
            Stage.COMMIT, lambda _: content, lambda a, r: self._signed(a, r, Commitment), relay
        )

    def _reveal(self, said: Said) -> None:
        experiment = self._run.experiment
        self._catch_up(said, said.commitments)
        content = self._question(audit_messages.REVEAL)
        content[audit_messages.SAID] = audit_messages.write_said(said.commitments.values())

        def read(agent: int, answer: RecordDict) -> Scores:
            scores, _ = audit_messages.read_one(answer, Scores)
            self._check_author(agent, scores)
            committed = said.commitments.get(agent)
            if committed is None or scores.commitment(experiment.domain) != committed[0].digest:
                raise FormatError("other scores than it committed to")
            self._hear_more(agent, answer)
            return scores

        def relay(openings: Mapping[int, Scores]) -> list[Rejection]:
            said.openings |= openings
            if set(experiment.progress.live) <= set(said.openings):
                return []  # all are known: to score them is to reveal them
            return experiment.reveal(list(openings.values()))

        self._let_act(
            Stage.REVEAL,
            lambda _: content,
            read,
            relay,
            over=lambda live: live <= set(said.openings),
        )

    def _score(self, said: Said) -> None:
        """Have the contract score all agents that are left."""
        experiment = self._run.experiment
        self._catch_up(said, said.openings)
        while (progress := experiment.progress).round == self._number:
            if progress.stage not in (Stage.REVEAL, Stage.SCORE):
                break
            if progress.deadline <= time.time():
                self._advance(progress)
                continue
            openings = [said.openings[agent] for agent in progress.live]
            self._in_time(partial(experiment.score, openings), None)
        self._pay_out()
        done = experiment.history().rounds[self._number]
        if not done.openings:
            raise RunEnded(
                f"nobody is left after round {self._number + 1}; "
                "who failed last gets back what was left of its bond"
            )
        self._tell(done)
        for agent, stage in done.eliminated.items():
            log(WARNING, "Agent %d is out: it failed in the stage %s", agent, stage)

    def _pay_out(self) -> None:
        """Credit agents what was refunded to them, once the experiment is over."""
        experiment = self._run.experiment
        if experiment.progress.stage is Stage.FINISHED:
            experiment.claim(range(len(experiment.agents)))

    def _conclude(self, number: int) -> Arrays:
        """The model that a round ended with, as most agents computed it; announced."""
        run, live = self._run, self._run.experiment.history().rounds[number].left
        content = self._question(audit_messages.AGGREGATE)
        self._write_verdict(content, number)
        told: dict[int, bytes] = {}
        until = time.time() + min(run.plan.stage_s, run.plan.train_s / 2)  # which has begun
        while (left := until - time.time()) > 0:
            missing = [agent for agent in live if agent not in told]
            answers = self._agents.ask(missing, lambda _: content, left / 2)
            told |= self._agents.read(answers, lambda a, r: self._signed(a, r, Aggregate)[0].digest)
            digest, votes = Counter(told.values()).most_common(1)[0] if told else (b"", 0)
            if 2 * votes > len(live):
                agreeing = [agent for agent in told if told[agent] == digest]
                arrays = self._fetch(content, agreeing, digest, until)
                run.publish(number + 1, arrays)
                return arrays
            time.sleep(min(PAUSE, max(until - time.time(), 0)))
        raise RunEnded(
            f"of {len(live)} agents, {len(told)} told the model that round {number + 1} ended "
            f"with, and most of them not the same"
        )

    def _fetch(
        self, content: RecordDict, agents: Sequence[int], digest: bytes, until: float
    ) -> Arrays:
        """The model with this digest, from the first of the agents that say so, or any other."""
        asked = RecordDict(dict(content))
        stage = audit_messages.write_stage(
            audit_messages.AGGREGATE, **{"arrays-key": self._arrays_key}
        )
        asked[audit_messages.STAGE] = stage

        def read(_agent: int, answer: RecordDict) -> Arrays:
            arrays = messages.read_model(answer)
            self._run.plan.model.check(arrays)
            if (found := updates.digest_of(arrays)) != digest:
                raise FormatError(f"a model with digest {found.hex()}, not {digest.hex()}")
            return arrays

        for some in (agents[:1], agents[1:]):
            answers = self._agents.ask(some, lambda _: asked, max(until - time.time(), 1) / 2)
            for arrays in self._agents.read(answers, read).values():
                return arrays
        raise RunEnded(f"no agent gave the model with digest {digest.hex()}")

    # -- asking ---------------------------------------------------------------------------------

    def _let_act(
        self,
        stage: Stage,
        content: Callable[[int], RecordDict],
        read: Callable[[int, RecordDict], Item],
        relay: Callable[[Mapping[int, Item]], list[Rejection]],
        kind: str = audit_messages.AUDIT,
        over: Callable[[set[int]], bool] = lambda _: False,
    ) -> None:
        """Ask the agents that are awaited, and relay what they say, until the stage is over.

        Half of what is left of the stage is waited for an answer: so there is time to relay what
        others said, and to ask again.
        """
        experiment = self._run.experiment
        self._agents.forgive()
        while True:
            progress = experiment.progress
            if (progress.round, progress.stage) != (self._number, stage):
                break
            if (left := progress.deadline - time.time()) <= 0:
                self._advance(progress)
                continue
            answers = self._agents.ask(progress.awaited, content, left / 2, kind)
            items = self._agents.read(answers, read)
            rejections = self._in_time(partial(relay, items), []) if items else []
            for rejection in rejections:
                log(WARNING, "Agent %d: the contract says %s", rejection.agent, rejection.fault)
            if over(set(progress.live)):
                break
            if len(items) == len(rejections):
                self._wait(progress)
        log(INFO, "Stage %s is over: %d agents are left", stage, len(experiment.progress.live))

    def _signed(self, agent: int, answer: RecordDict, kind: type[Kind]) -> SignedBy[Kind]:
        """What an agent said, duly signed; FormatError if it is not."""
        item, signature = audit_messages.read_one(answer, kind)
        self._check_author(agent, item)
        if not self._run.peers.is_signed(item, signature):
            raise FormatError(f"a {kind.__name__} that it did not sign")
        return item, signature

    def _check_author(self, agent: int, item: Any) -> None:
        if (item.agent, item.round) != (agent, self._number):
            raise FormatError(f"what agent {item.agent} says of round {item.round + 1}")

    def _wait(self, progress: Progress) -> None:
        """Give agents that have not acted some time."""
        time.sleep(max(0.0, min(PAUSE, (progress.deadline - time.time()) / 4)))

    def _in_time(self, act: Callable[[], Item], otherwise: Other) -> Item | Other:
        """What a transaction returns, if the stage is not over on the chain before it is here."""
        try:
            return act()
        except Reverted as refused:
            if not str(refused).startswith(("TooLate", "WrongStage")):
                raise
            log(WARNING, "The chain says %s", refused)
            self._advance(self._run.experiment.progress)
            return otherwise

    def _advance(self, progress: Progress) -> None:
        """End a stage whose deadline has passed here; on the chain it may pass with a new block."""
        try:
            self._run.experiment.advance()
            late = ", ".join(map(str, progress.awaited)) or "none"
            log(WARNING, "The time for the stage %s is over; not heard: %s", progress.stage, late)
        except Reverted as refused:
            if not str(refused).startswith("TooEarly"):
                return  # somebody else did it
            time.sleep(1)
            if time.time() > progress.deadline + SLACK:
                self._run.token.transact(self._owner, "transfer", self._owner.address, 0)

    def _question(self, stage: str, **told: str | int | bytes) -> RecordDict:
        return RecordDict(
            {
                messages.RECORD: self._request(self._number, self._received),
                audit_messages.STAGE: audit_messages.write_stage(stage, **told),
            }
        )

    def _request(self, number: int, model: Arrays) -> ConfigRecord:
        """The task of a round, signed: what the owner says that it begins with."""
        run = self._run
        task = Task(number, updates.digest_of(model), run.plan.digest)
        domain = run.experiment.domain
        content = RecordDict()
        signature = sign(task.encode(domain), self._owner)
        messages.write_request(content, Request(task, signature, domain, run.plan))
        return content.config_records[messages.RECORD]

    def _write_verdict(self, content: RecordDict, number: int) -> None:
        """Add what the model can be computed from that a round ended with."""
        said = self._said_in(number)
        found = self._run.experiment.history().rounds[number]
        # Who acted by a transaction without a signature: the others can't know what it said.
        signed = said.retrievals.keys() & said.commitments.keys()
        opened = [(found.openings[agent], b"") for agent in sorted(found.openings.keys() & signed)]
        verdict = audit_messages.write_said([*said.commitments.values(), *opened])
        content[audit_messages.SAID] = verdict

    def _said_in(self, number: int) -> Said:
        """What was said in a round; from the ledger, if another process relayed it."""
        if number not in self._rounds_said:
            self._rounds_said = {n: s for n, s in self._rounds_said.items() if n == number - 1}
            self._rounds_said[number] = self._recall(number)
        return self._rounds_said[number]

    def _catch_up(self, said: Said, known: Mapping[int, object]) -> None:
        """Take what was said from the ledger, unless all that are left are known, and no others.

        Anyone may relay what an agent says, and what was sent here may have been too late. Auditors
        are drawn by all secrets, also by those of agents that are out.
        """
        drawn = self._run.peers.auditors > 0
        if drawn or set(known) != set(self._run.experiment.progress.live):
            held = self._recall(self._number)
            said.models, said.retrievals = held.models, held.retrievals
            said.commitments = held.commitments
            said.openings |= held.openings

    def _recall(self, number: int) -> Said:
        experiment, said = self._run.experiment, Said()
        for item, signature in experiment.signed(number):
            if not self._run.peers.is_signed(item, signature):
                continue
            match item:
                case TrainedModel():
                    said.models[item.agent] = item, signature
                case Retrieval():
                    said.retrievals[item.agent] = item, signature
                case Commitment():
                    said.commitments[item.agent] = item, signature
        said.openings |= experiment.history().rounds[number].openings
        return said

    def _metrics(self, said: Said) -> MetricRecord | None:
        """What the inner strategy makes of what ``train()`` returned, weighted by the scores."""
        overall = self._run.experiment.history().rounds[self._number].overall
        weights = {agent: p / ONE for agent, p in overall.items()} if any(overall.values()) else {}
        records = {
            agent: MetricRecord({**told, self._weight_key: weights.get(agent, 1.0)})
            for agent, told in sorted(said.metrics.items())
            if agent in overall
        }
        if not records:
            return None
        keep_common_metrics(list(records.values()))
        contents = [RecordDict({"metrics": record}) for record in records.values()]
        aggregate = of_innermost(self.strategy, "train_metrics_aggr_fn", aggregate_metricrecords)
        return cast(MetricRecord, aggregate(contents, self._weight_key))


def require_mean(strategy: Strategy) -> None:
    """ConfigError unless the strategy leaves to FedAvg how models are aggregated."""
    if getattr(type(strategy), "aggregate_train", None) is not FedAvg.aggregate_train:
        raise ConfigError(
            f"{type(strategy).__name__} aggregates in its own way: under this scheme the agents "
            "compute the aggregate, a weighted mean of the models"
        )


class _Everyone:
    """What of a Grid an inner strategy needs to make its messages: one node for each agent."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        """They are all there."""
        return self._nodes


def _accepted(items: Mapping[int, Item], rejections: Sequence[Rejection]) -> dict[int, Item]:
    """The items that the contract has taken."""
    refused = {rejection.agent for rejection in rejections}
    return {agent: item for agent, item in items.items() if agent not in refused}
