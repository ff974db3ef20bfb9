"""Recompute a run whose agents judge each other: who stays, what each gets, the models."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from flower_chain.errors import FormatError, SealError, StoreError, Unverified
from flower_chain.keys import address_of
from flower_chain.ledger.base import Receipt
from flower_chain.ledger.blockflow import History, Round, Stage
from flower_chain.records import Commitment, Leave, Retrieval, TrainedModel, lot_of
from flower_chain.rules.blockflow import refunds, retrieval_survivors, seed_of
from flower_chain.run import PeersRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import Arrays, digest_of, unpack, weighted_mean
from flower_chain.verify.base import Report, Verifier


class PeersVerifier(Verifier):
    """Checks a run whose agents judge each other.

    Parameters
    ----------
    run : PeersRun
    reader : LocalAccount or None
        An agent, or a reader that the plan names.
    """

    _run: PeersRun

    def __init__(self, run: PeersRun, reader: LocalAccount | None) -> None:
        super().__init__(run, reader)
        self._peers = run.peers
        self._history: History = run.experiment.history()
        self._live = sorted(self._history.joined)
        self._refunded = dict.fromkeys(range(len(run.plan.accounts)), 0)
        self._elsewhere = self._unused = 0
        self._unsigned: set[int] = set()

    @abstractmethod
    def _agreed(self) -> dict[str, int]:
        """The terms of the scheme that the contract enforces, by its names."""

    @abstractmethod
    def _rest_of_bond(self, record: Round) -> int:
        """What an agent that is left has left of its bond in a round."""

    @abstractmethod
    def _judge(self, record: Round, audits: Mapping[int, Sequence[int]], lost: int) -> None:
        """Check what the contract made of the scores of all that are left, and what each gets.

        Parameters
        ----------
        record : Round
        audits : mapping of int to sequence of int
            Whose models each agent audited, in the order of its row.
        lost : int
            Of the bonds, before the scores were computed.
        """

    def check(self) -> Iterator[Report]:
        """Check the experiment round by round; the report grows with each."""
        self._check_reader(set(map(address_of, self._peers.recipients)))
        self._check_code()
        self._check_plan()
        self._say_what_is_left_out()
        model = self._check_model(0)
        for record in self._begun():
            self._check_signatures(record)
            weights = self._check_round(record)
            if weights is not None:
                model = self._check_successor(record, weights, model)
            yield self._report
        self._check_balances()
        self._say_what_is_gone()
        self._say_what_was_passed_over()
        yield self._report

    # -- what was agreed --------------------------------------------------------------------

    def _check_plan(self) -> None:
        plan = self._run.plan
        shared = {
            "rounds": plan.rounds,
            "quorum": plan.quorum,
            "bond": plan.bond,
            "agentCount": len(plan.accounts),
        }
        self._check_terms(shared | self._agreed())
        for number, (named, enforced) in enumerate(
            zip(plan.accounts, self._run.experiment.agents, strict=True)
        ):
            if named != enforced:
                raise Unverified(
                    f"plan: agent {number} is {named}, but the contract has {enforced}"
                )
        for event in self._run.contract.events(self._run.contract.block):
            if event.name == "StageOpened":
                self._check_seconds(Stage(event.args["stage"]), event.args["deadline"] - event.time)
        self._report.count("terms", len(plan.accounts))

    def _check_seconds(self, stage: Stage, enforced: int) -> None:
        agreed = (*self._run.plan.seconds, enforced)[stage]
        if enforced != agreed:
            raise Unverified(
                f"plan: {stage} lasts {agreed} seconds, but the contract enforces {enforced}"
            )

    def _say_what_is_left_out(self) -> None:
        left_out = self._report.unchecked
        left_out.append("the agents' scores: each measured them on its own data")
        if self._reader is None:
            left_out.append(
                "what the sealed models hold, and the aggregates: needs the key of an agent or a "
                "reader (--key)"
            )

    def _say_what_was_passed_over(self) -> None:
        """What could not be judged, or need not be."""
        if self._aggregates_itself:
            word = f"the aggregates: the server's {self._aggregates_itself} made them"
            self._report.unchecked.append(word)
        if self._elsewhere:
            word = f"{self._elsewhere} signatures: other contracts relayed them"
            self._report.unchecked.append(word)
        if self._unused:
            word = (
                f"{self._unused} models of agents that were eliminated, or signed nothing: they "
                "count for nothing"
            )
            self._report.unchecked.append(word)

    # -- models -----------------------------------------------------------------------------

    def _check_model(self, number: int) -> bytes | None:
        """The digest of the one model that the owner announced for a round; None if not yet."""
        where, announced = f"round {number}, model", self._history.announced.get(number, {})
        if not announced and not self._is_trained_on(number):
            self._report.unchecked.append(f"{where}: the owner has not announced it")
            return None
        if len(announced) != 1:
            raise Unverified(f"{where}: the owner announced {len(announced)}, not one")
        ((found, cid),) = announced.items()
        if number == 0 and found.hex() != self._run.plan.first:
            raise Unverified(
                f"{where}: its digest is {found.hex()}, the plan's {self._run.plan.first}"
            )
        if not self._is_gone(number, cid):
            self._load(where, cid, found)
        return found

    def _is_trained_on(self, number: int) -> bool:
        """Whether agents have trained the model that a round begins with."""
        return any(record.contributions for record in self._history.rounds[number : number + 1])

    def _check_successor(
        self, record: Round, weights: Mapping[int, int], model: bytes | None
    ) -> bytes | None:
        """The model of the next round: the mean that the scores weigh, if that can be known."""
        trained = [self._check_trained(record.contributions[agent]) for agent in weights]
        self._unused += len(record.contributions) - len(trained)
        announced = self._check_model(record.number + 1)
        expected = None if self._aggregates_itself else model
        if any(weights.values()) and not self._aggregates_itself:
            opened = [arrays for arrays in trained if arrays is not None]
            is_whole = opened and len(opened) == len(weights)
            mean = weighted_mean(opened, list(weights.values())) if is_whole else None
            expected = None if mean is None else digest_of(mean)
        if announced is not None and expected is not None:
            if announced != expected:
                raise Unverified(
                    f"round {record.number + 1}, model: not the mean of what was scored"
                )
            self._report.count("aggregates")
        return announced

    @property
    def _aggregates_itself(self) -> str | None:
        """The server's inner strategy, if the models are what that made of what was trained."""
        return None

    def _check_trained(self, model: TrainedModel) -> Arrays | None:
        """What an agent trained, which must be stored as it signed it.

        None if it can't be opened without a key, or is no longer there.
        """
        if self._is_gone(model.round, model.cid):
            return None
        where = f"round {model.round}, model of {self._name(model.agent)}"
        try:
            sealed = self._run.store.get(cid_from_bytes(model.cid), self._peers.sealed_bytes)
            self._report.count("stored models")
            if self._reader is None:
                return None
            packed = self._peers.open(model, sealed, self._reader)
        except (StoreError, FormatError, SealError) as fault:
            raise Unverified(f"{where}: {fault}") from fault
        self._report.count("opened models")
        return unpack(packed)

    # -- rounds -----------------------------------------------------------------------------

    def _begun(self) -> list[Round]:
        """The rounds, if enough agents have posted their bonds; else these must have come back."""
        history = self._history
        if history.stage is Stage.ENROL:
            self._leave_open(history.rounds[0], Stage.ENROL)
            return []
        if len(self._live) < self._run.plan.quorum:
            self._check_refunds(history.rounds[0], [0] * len(self._live), 0, self._run.plan.bond)
            return []
        return history.rounds

    def _check_signatures(self, record: Round) -> None:
        """Whether agents said what the contract says that they did, as the transactions tell."""
        number = record.number
        self._unsigned = set()
        if self._peers.auditors:
            self._check_told_signatures(record)
            return
        calls = {receipt.transaction for receipt in record.sent.values()}
        signed_in = {call: self._run.experiment.signed_in(call, number) for call in calls}
        for said, receipt in record.sent.items():
            signed = signed_in[receipt.transaction]
            if signed is None:
                self._elsewhere += 1
                self._leave_out(said)
                continue
            signatures = [signature for item, signature in signed if item == said]
            if any(self._peers.is_signed(said, signature) for signature in signatures):
                self._report.count("signatures")
            elif signatures and receipt.sender == self._run.plan.accounts[said.agent]:
                self._report.count("own transactions")
                self._leave_out(said)
            else:
                raise self._not_signed(said, receipt)

    def _check_told_signatures(self, record: Round) -> None:
        """The same if auditors are drawn: the contract demands all signatures, and tells them."""
        told = zip(record.sent.items(), record.signatures, strict=True)
        for (said, receipt), signature in told:
            if not self._peers.is_signed(said, signature):
                raise self._not_signed(said, receipt)
            self._report.count("signatures")

    def _not_signed(
        self, said: TrainedModel | Retrieval | Commitment | Leave, by: Receipt
    ) -> Unverified:
        return Unverified(
            f"round {said.round}, {type(said).__name__} of {self._name(said.agent)}: not signed "
            f"in the transaction {by.transaction}"
        )

    def _leave_out(self, said: object) -> None:
        """Note that other agents could not check what one said: it counts for nothing to them."""
        if isinstance(said, Retrieval | Commitment):
            self._unsigned.add(said.agent)

    def _check_round(self, record: Round) -> dict[int, int] | None:
        """Who is left, by who acted, and what each gets.

        Returns what each model weighs; None if the round did not come to that, or not yet.
        """
        self._check_openings(record)
        rest, lost = self._rest_of_bond(record), 0
        stages: list[tuple[Stage, Mapping[int, object]]] = [
            (Stage.TRAIN, record.contributions),
            (Stage.RETRIEVE, record.retrievals),
            (Stage.COMMIT, record.commitments),
            (Stage.REVEAL, record.openings),
        ]
        for stage, said in stages:
            if strangers := sorted(set(said) - set(self._live)):
                raise Unverified(
                    f"round {record.number}, {stage}: agents {strangers} acted, but were out"
                )
            if self._is_at(record, stage):
                self._leave_open(record, stage)
                return None
            survivors = self._passed(record) if stage is Stage.RETRIEVE else sorted(said)
            if stage is Stage.RETRIEVE:
                audits = self._audits(record, survivors)
            self._check_eliminated(record, stage, survivors)
            if not survivors:
                self._check_refunds(record, [0] * len(self._live), lost, rest)
                return None
            lost += rest * (len(self._live) - len(survivors))
            self._live = survivors
            if self._is_over(record, survivors):
                self._check_refunds(record, [0] * len(survivors), lost, rest)
                return self._weights(record, audits) if stage is Stage.REVEAL else None
        if self._is_at(record, Stage.SCORE):
            self._leave_open(record, Stage.SCORE)
            return None
        # All that revealed: their models are in the mean, whatever the contract makes of them.
        weights = self._weights(record, audits)
        self._judge(record, audits, lost)
        return weights

    def _is_over(self, _record: Round, _survivors: Sequence[int]) -> bool:
        """Whether the run ends because too few are left after a stage."""
        return False

    def _weights(self, record: Round, audits: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """The overall scores among those whose word the others could check, which weigh models."""
        signed = [agent for agent in self._live if agent not in self._unsigned]
        rows = {agent: record.openings[agent].row for agent in signed}
        try:
            return self._peers.weights(rows, audits)
        except FormatError as fault:
            raise Unverified(f"round {record.number}, scores: {fault}") from fault

    def _is_at(self, record: Round, stage: Stage) -> bool:
        return record is self._history.rounds[-1] and stage is self._history.stage

    def _leave_open(self, record: Round, stage: Stage) -> None:
        self._report.unchecked.append(f"round {record.number}: it is at the stage {stage}")

    def _check_eliminated(self, record: Round, stage: Stage, survivors: Collection[int]) -> None:
        """Who did not pass, unless nobody did: then the experiment ends with all of them."""
        out = [agent for agent in self._live if agent not in survivors] if survivors else []
        told = sorted(agent for agent, at in record.eliminated.items() if at is stage)
        if told != out:
            raise Unverified(
                f"round {record.number}, {stage}: agents {told} were eliminated, by the rules {out}"
            )
        self._report.count("stages")

    def _passed(self, record: Round) -> list[int]:
        """The agents that pass the retrieval rule."""
        places = {agent: place for place, agent in enumerate(self._live)}
        found = {agent: said.retrieved for agent, said in record.retrievals.items()}
        retrieved = [
            [places[other] for other in found[agent] if other in places] if agent in found else None
            for agent in self._live
        ]
        return [self._live[place] for place in retrieval_survivors(retrieved)]

    def _check_openings(self, record: Round) -> None:
        for agent, opening in record.openings.items():
            said = record.commitments.get(agent)
            if said is None or opening.commitment(self._peers.domain) != said.digest:
                where = f"round {record.number}, scores of {self._name(agent)}"
                raise Unverified(f"{where}: not what it committed to")
            self._report.count("openings")

    def _audits(self, record: Round, passed: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """Whose models each agent audits, in the order of its row."""
        if not self._peers.auditors:
            return self._peers.audits(passed, b"")
        for agent, said in record.retrievals.items():
            lot = lot_of(agent, record.number, said.secret, self._peers.domain)
            if lot != record.contributions[agent].lot:
                where = f"round {record.number}, secret of {self._name(agent)}"
                raise Unverified(f"{where}: not the one it had chosen before")
        secrets = [said.secret for said in record.retrievals.values()]
        drawn = self._peers.audits(passed, seed_of(secrets))
        if drawn != record.audits:
            raise Unverified(f"round {record.number}: the auditors are not those that were drawn")
        self._report.count("draws")
        return drawn

    # -- money ------------------------------------------------------------------------------

    def _check_refunds(self, record: Round, weights: Sequence[int], pot: int, rest: int) -> None:
        """The pot shared by weights among who is left, and the rest of each bond."""
        shares = zip(self._live, refunds(pot, weights), strict=True)
        self._check_paid(record, {agent: share + rest for agent, share in shares})

    def _check_paid(self, record: Round, expected: Mapping[int, int]) -> None:
        """What each agent got in a round, in the token's smallest unit."""
        for agent in sorted(expected.keys() | record.refunded.keys()):
            if expected.get(agent) != record.refunded.get(agent):
                raise Unverified(
                    f"round {record.number}, refund of {self._name(agent)}: "
                    f"{record.refunded.get(agent)}, by the rules {expected.get(agent)}"
                )
            self._refunded[agent] += expected[agent]
        self._report.count("refunds", len(expected))

    def _check_balances(self) -> None:
        """The contract's own books against the refunds, its events and its tokens."""
        history, contract = self._history, self._run.contract
        if self._run.experiment.history() != history:
            self._report.unchecked.append("balances: the run went on while it was checked")
            return
        owner, claimed = to_checksum_address(contract.call("owner")), 0
        for agent, account in enumerate(self._run.plan.accounts):
            _, left = contract.call("agents", agent)
            taken = self._refunded[agent] - left
            if account != owner and history.credited[account] != taken:
                raise Unverified(
                    f"refunds of {self._name(agent)}: {self._refunded[agent]} in all, but "
                    f"{history.credited[account]} credited and {left} left to claim"
                )
            claimed += taken
        if strangers := history.credited.keys() - {owner, *self._run.plan.accounts}:
            raise Unverified(f"credits of {min(strangers)}: it is no agent")
        held = len(history.joined) * self._run.plan.bond + self._besides() - claimed
        if (told := contract.call("held")) != held:
            raise Unverified(f"bonds: the contract holds {told}, by the refunds {held}")
        self._check_funds(held + self._check_credits(history.credited, history.withdrawn))

    def _besides(self) -> int:
        """What the contract holds for agents beside their bonds."""
        return 0

    def _name(self, agent: int) -> str:
        return f"agent {agent} ({self._run.plan.accounts[agent]})"
