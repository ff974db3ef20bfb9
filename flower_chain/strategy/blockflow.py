"""papers/3: BlockFLow, in which every agent audits every model."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import INFO, WARNING
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from flower_chain import audit_messages, messages, updates
from flower_chain.errors import ConfigError, FormatError, Reverted, RunEnded, StoreError
from flower_chain.ledger.blockflow import Permit, Progress, Rejection, Stage
from flower_chain.messages import Request
from flower_chain.plan import BlockFlowPlan
from flower_chain.records import (
    NOBODY,
    TOKEN_UNITS,
    Aggregate,
    BondPermit,
    Commitment,
    Domain,
    Hello,
    Retrieval,
    Scores,
    SignedBy,
    Task,
    TrainedModel,
    recover,
    sign,
)
from flower_chain.rules.blockflow import ONE
from flower_chain.run import BlockFlowRun
from flower_chain.store.cid import cid_from_bytes, cid_of
from flower_chain.strategy.admission import last_line
from flower_chain.strategy.base import LedgerStrategy, keep_common_metrics, numpy_of, record_of
from flower_chain.strategy.settings import BlockFlowSettings
from flower_chain.updates import Arrays, Format

Item = TypeVar("Item")
Other = TypeVar("Other")
Kind = TypeVar("Kind", TrainedModel, Retrieval, Commitment, Aggregate)

SLACK = 5.0
"""Seconds after a deadline in which a chain should have made a block."""

PAUSE = 1.0
"""Seconds between two questions to an agent that has not done what it was asked for."""


@dataclass
class _Round:
    """What was said in a round, by agent.

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


class BlockFlow(LedgerStrategy):
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
    strategy: FedAvg
    _run: BlockFlowRun

    def __init__(self, strategy: Strategy, settings: BlockFlowSettings) -> None:
        if getattr(type(strategy), "aggregate_train", None) is not FedAvg.aggregate_train:
            raise ConfigError(
                f"{type(strategy).__name__} aggregates in its own way: under blockflow the agents "
                "compute the aggregate, which is the mean of the models, weighted by their scores"
            )
        assert isinstance(strategy, FedAvg)
        if strategy.fraction_train != 1.0:
            raise ConfigError(
                f"fraction_train = {strategy.fraction_train}: under blockflow all agents train in "
                "every round, or lose their bonds"
            )
        super().__init__(strategy, settings)
        self._nodes: dict[str, list[int]] = {}
        self._rounds_said: dict[int, _Round] = {}
        self._complaints: dict[int, str] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Prepare what agents are asked to train with, and what they need to check the model.

        They are asked in :meth:`aggregate_train`, as in all other stages: Flower would wait for who
        is silent, whatever is left of the time to train, and send to nodes that are gone.
        """
        self._number = self._done + server_round - 1
        self._received = numpy_of(arrays)
        everyone = _Everyone(self._known_nodes())
        inner = self.strategy.configure_train(
            self._number + 1, arrays, config, cast(Grid, everyone)
        )
        content = RecordDict(dict(next(iter(inner)).content))
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
        return record_of(arrays), self._metrics(said)

    # -- beginning ------------------------------------------------------------------------------

    def _prepare(
        self, num_rounds: int, timeout: float, evaluate_config: ConfigRecord | None
    ) -> float:
        self.settings.check_rounds(num_rounds)
        self._evaluate_config = evaluate_config or ConfigRecord()
        # Flower waits for the evaluations of a model, while the next round's training has begun.
        return min(timeout, self.settings.train_seconds / 4)

    def _log_terms(self) -> None:
        plan = self._run.plan
        bond, stake = plan.bond / TOKEN_UNITS, plan.stake / TOKEN_UNITS
        log(INFO, "\t│\t├── Agents: %d, quorum %d", len(plan.accounts), plan.quorum)
        log(INFO, "\t│\t├── Bond: %g tokens each, %g of them at stake in a round", bond, stake)
        log(INFO, "\t│\t├── Scored by: %r", plan.metric)

    def _open(self, grid: Grid, model: Arrays) -> Arrays:
        self._grid = grid
        settings, rounds = self.settings, self._rounds

        def plan_of(agents: Sequence[bytes]) -> BlockFlowPlan:
            digest = updates.digest_of(model)
            return settings.plan(Format.of(model), digest, self._inner, rounds, agents)

        self._run = BlockFlowRun.start(
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
            return self._current()
        except BaseException:
            self._run.close()
            raise

    def _gather(self, chain_id: int) -> list[bytes]:
        """The public keys of who wants to take part, once there are enough nodes."""
        least, wanted = self.strategy.min_available_nodes, set(self._allowlist or ())
        while True:
            nodes = list(self._grid.get_node_ids())
            if len(nodes) >= least:
                self._meet(chain_id, nodes, self._hello_timeout)
                if not (absent := wanted - set(self._nodes)):
                    break
                log(INFO, "Waiting for %s", ", ".join(sorted(absent)))
            else:
                log(INFO, "Waiting for nodes to connect: %d of %d", len(nodes), least)
            time.sleep(1)
        agents = wanted or set(self._nodes) - {self._owner.address}
        if len(agents) < max(least, self.strategy.min_train_nodes, 1):
            raise ConfigError(
                f"{len(agents)} agents want to take part, but the strategy needs "
                f"{max(least, self.strategy.min_train_nodes)}"
            )
        return [self._public_keys[account] for account in sorted(agents)]

    def _meet(self, chain_id: int, nodes: Sequence[int], timeout: float) -> None:
        """Ask the nodes that are not known yet who they are."""
        known = {node for met in self._nodes.values() for node in met}
        strangers = [node for node in nodes if node not in known]
        domain, timeout = Domain(chain_id, NOBODY), min(timeout, self._hello_timeout)
        for node, hello in self._hear(self._grid, strangers, domain, timeout).items():
            if isinstance(hello, Hello):
                self._nodes.setdefault(hello.device, []).append(node)

    def _current(self) -> Arrays:
        """Enrol the agents if that is left to do, and tell the model of the current round."""
        run, experiment = self._run, self._run.experiment
        self._number = 0
        first = run.model(0)
        assert first is not None
        self._received = first
        if experiment.progress.stage is Stage.ENROL:
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

    def _train(self, said: _Round) -> None:
        run, peers = self._run, self._run.peers

        def read(agent: int, answer: RecordDict) -> SignedBy[TrainedModel]:
            model, signature = self._signed(agent, answer, TrainedModel)
            sealed = messages.read_sealed(answer)
            if sealed is None or len(sealed) != peers.sealed_bytes:
                size = len(sealed or b"")
                raise FormatError(f"a sealed model of {size} bytes, not {peers.sealed_bytes}")
            if (cid := cid_of(sealed)) != (named := cid_from_bytes(model.cid)):
                raise FormatError(f"the bytes of {cid}, but {named} was signed")
            run.store.put(sealed)
            for metrics in answer.metric_records.values():
                said.metrics[agent] = metrics
            return model, signature

        def relay(models: Mapping[int, SignedBy[TrainedModel]]) -> list[Rejection]:
            rejections = run.experiment.submit(list(models.values()))
            said.models |= _accepted(models, rejections)
            return rejections

        self._let_act(Stage.TRAIN, lambda _: self._task, read, relay, MessageType.TRAIN)

    def _retrieve(self, said: _Round) -> None:
        run = self._run
        self._catch_up(said, said.models)
        content = self._question(audit_messages.RETRIEVE)
        content[audit_messages.SAID] = audit_messages.write_said(said.models.values())
        progress = run.experiment.progress
        if progress.stage is Stage.RETRIEVE:
            sealed = [
                (agent, self._sealed(model)) for agent, (model, _) in sorted(said.models.items())
            ]
            content[audit_messages.MODELS] = audit_messages.write_models(sealed)

        def relay(retrievals: Mapping[int, SignedBy[Retrieval]]) -> list[Rejection]:
            rejections = run.experiment.retrieve(list(retrievals.values()))
            said.retrievals |= _accepted(retrievals, rejections)
            return rejections

        self._let_act(
            Stage.RETRIEVE, lambda _: content, lambda a, r: self._signed(a, r, Retrieval), relay
        )

    def _sealed(self, model: TrainedModel) -> bytes:
        """A model's bytes; nothing if they are not here, as when another relay had them."""
        try:
            return self._run.store.get(cid_from_bytes(model.cid))
        except (FormatError, StoreError) as fault:
            log(WARNING, "The model of agent %d is not passed on: %s", model.agent, fault)
            return b""

    def _commit(self, said: _Round) -> None:
        self._catch_up(said, said.retrievals)
        content = self._question(audit_messages.COMMIT, **{"arrays-key": self._arrays_key})
        content[audit_messages.SAID] = audit_messages.write_said(said.retrievals.values())
        config = ConfigRecord({**self._evaluate_config, "server-round": self._number + 1})
        content[self.strategy.configrecord_key] = config

        def relay(commitments: Mapping[int, SignedBy[Commitment]]) -> list[Rejection]:
            rejections = self._run.experiment.commit(list(commitments.values()))
            said.commitments |= _accepted(commitments, rejections)
            return rejections

        self._let_act(
            Stage.COMMIT, lambda _: content, lambda a, r: self._signed(a, r, Commitment), relay
        )

    def _reveal(self, said: _Round) -> None:
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

    def _score(self, said: _Round) -> None:
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
        told = ", ".join(f"{n}: {p / ONE:.3f}" for n, p in done.overall.items())
        log(INFO, "Overall scores of the agents: %s", told or "none, all get the same")
        for agent, stage in done.eliminated.items():
            log(WARNING, "Agent %d is out: it failed in the stage %s", agent, stage)

    def _pay_out(self) -> None:
        """Credit agents what was refunded to them, once the experiment is over."""
        experiment = self._run.experiment
        if experiment.progress.stage is Stage.FINISHED:
            experiment.claim(range(len(experiment.agents)))

    def _conclude(self, number: int) -> Arrays:
        """The model that a round ended with, as most agents computed it; announced."""
        run, experiment = self._run, self._run.experiment
        live = experiment.progress.live
        content = self._question(audit_messages.AGGREGATE)
        self._write_verdict(content, number)
        told: dict[int, bytes] = {}
        until = time.time() + min(run.plan.stage_s, run.plan.train_s / 2)  # which has begun
        while (left := until - time.time()) > 0:
            missing = [agent for agent in live if agent not in told]
            answers = self._ask(missing, lambda _: content, left / 2)
            told |= self._read(answers, lambda a, r: self._signed(a, r, Aggregate)[0].digest)
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
            answers = self._ask(some, lambda _: asked, max(until - time.time(), 1) / 2)
            for arrays in self._read(answers, read).values():
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
        self._complaints.clear()
        while True:
            progress = experiment.progress
            if (progress.round, progress.stage) != (self._number, stage):
                break
            if (left := progress.deadline - time.time()) <= 0:
                self._advance(progress)
                continue
            items = self._read(self._ask(progress.awaited, content, left / 2, kind), read)
            rejections = self._in_time(partial(relay, items), []) if items else []
            for rejection in rejections:
                log(WARNING, "Agent %d: the contract says %s", rejection.agent, rejection.fault)
            if over(set(progress.live)):
                break
            if len(items) == len(rejections):
                self._wait(progress)
        log(INFO, "Stage %s is over: %d agents are left", stage, len(experiment.progress.live))

    def _ask(
        self,
        agents: Sequence[int],
        content: Callable[[int], RecordDict],
        timeout: float,
        kind: str = audit_messages.AUDIT,
    ) -> list[tuple[int, Message]]:
        """What agents answer, from all nodes that they introduced themselves from."""
        until = time.time() + timeout
        connected = list(self._grid.get_node_ids())
        if any(not set(self._nodes_of([agent])) & set(connected) for agent in agents):
            self._meet(self._run.experiment.domain.chain_id, connected, timeout / 2)
        asked = {
            node: agent for agent in agents for node in self._nodes_of([agent]) if node in connected
        }
        questions = [_message(content(agent), node, kind) for node, agent in asked.items()]
        replies = self._grid.send_and_receive(questions, timeout=until - time.time())
        return [(asked[reply.metadata.src_node_id], reply) for reply in replies]

    def _read(
        self,
        answers: Iterable[tuple[int, Message]],
        read: Callable[[int, RecordDict], Item],
    ) -> dict[int, Item]:
        """What can be used of the answers, by agent."""
        items: dict[int, Item] = {}
        for agent, answer in answers:
            try:
                if answer.has_error():
                    raise FormatError(last_line(answer.error.reason))
                items[agent] = read(agent, answer.content)
            except FormatError as fault:
                self._complain(agent, str(fault))
        return items

    def _complain(self, agent: int, fault: str) -> None:
        """Log what is wrong with an agent's answer, once."""
        if self._complaints.get(agent) != fault:
            self._complaints[agent] = fault
            log(WARNING, "Agent %d: %s", agent, fault)

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
        opened = [(found.openings[agent], b"") for agent in found.left if agent in signed]
        verdict = audit_messages.write_said([*said.commitments.values(), *opened])
        content[audit_messages.SAID] = verdict

    def _said_in(self, number: int) -> _Round:
        """What was said in a round; from the ledger, if another process relayed it."""
        if number not in self._rounds_said:
            self._rounds_said = {n: s for n, s in self._rounds_said.items() if n == number - 1}
            self._rounds_said[number] = self._recall(number)
        return self._rounds_said[number]

    def _catch_up(self, said: _Round, known: Mapping[int, object]) -> None:
        """Take what was said from the ledger, unless all that are left are known, and no others.

        Anyone may relay what an agent says, and what was sent here may have been too late.
        """
        if set(known) != set(self._run.experiment.progress.live):
            held = self._recall(self._number)
            said.models, said.retrievals = held.models, held.retrievals
            said.commitments = held.commitments
            said.openings |= held.openings

    def _recall(self, number: int) -> _Round:
        experiment, said = self._run.experiment, _Round()
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

    def _nodes_of(self, agents: Iterable[int]) -> list[int]:
        accounts = [self._run.experiment.agents[agent] for agent in agents]
        return [node for account in accounts for node in self._nodes.get(account, ())]

    def _known_nodes(self) -> list[int]:
        """A node for each agent of the experiment; of one that is not known, a number below 0."""
        accounts = self._run.experiment.agents
        return [self._nodes.get(a, [-1 - number])[0] for number, a in enumerate(accounts)]

    def _metrics(self, said: _Round) -> MetricRecord | None:
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
        return self.strategy.train_metrics_aggr_fn(contents, self._weight_key)


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


def _message(content: RecordDict, node: int, kind: str) -> Message:
    return Message(content, dst_node_id=node, message_type=kind)
