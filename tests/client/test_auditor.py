"""An agent of BlockFLow: what it says, what it believes, and what it remembers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from flower_chain.client.auditor import Auditor
from flower_chain.errors import FormatError, TaskRefused
from flower_chain.keys import public_key
from flower_chain.ledger import Ledger
from flower_chain.ledger.blockflow import Experiment, Stage, Terms
from flower_chain.peers import Peers
from flower_chain.records import Domain, Scores, TrainedModel, lot_of, sign
from flower_chain.rules.blockflow import ONE, draw, score, seed_of, table
from flower_chain.store.cid import cid_of, cid_to_bytes
from flower_chain.store.seal import seal
from flower_chain.updates import Arrays, Format, digest, pack, weighted_mean

N = 5
COMMIT_SECONDS = 100
TRUTH = np.array([0.2, -0.4, 0.6], np.float32)
FIRST: Arrays = {"w": np.zeros(3, np.float32)}
ACCOUNTS: list[LocalAccount] = sorted(
    (Account.from_key(hashlib.sha256(bytes([n])).digest()) for n in range(N)),
    key=lambda account: account.address.lower(),
)
KEYS = tuple(public_key(account) for account in ACCOUNTS)
PEERS = Peers(Domain(7, "0x" + 40 * "1"), KEYS, Format.of(FIRST), COMMIT_SECONDS)


DRAWN = replace(PEERS, auditors=2, train_seconds=50)


def trained(agent: int) -> Arrays:
    """The lower its number, the better an agent's model."""
    return {"w": TRUTH + np.float32(agent / 10)}


def evaluate(model: Arrays) -> float:
    """Everybody's data say the same."""
    return float(np.clip(1 - np.abs(model["w"] - TRUTH).mean(), 0, 1))


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Round:
    """Five agents and an honest relay, who forgets nothing that was said.

    Parameters
    ----------
    folder : Path
    peers : Peers
    number : int
    """

    def __init__(self, folder: Path, peers: Peers = PEERS, number: int = 0) -> None:
        self.clock = Clock()
        self.number = number
        self._folder, self._peers = folder, peers
        self.restart()

    def restart(self) -> None:
        """Kill all agents and start them again."""
        self.agents = [
            Auditor(self._folder / str(n), account, self._peers, self.clock)
            for n, account in enumerate(ACCOUNTS)
        ]

    def train(self) -> None:
        """All contribute."""
        models = [trained(n) for n in range(N)]
        self.models = [a.contribute(self.number, models[a.number]) for a in self.agents]

    def retrieve(self) -> None:
        """All open all models, and report."""
        assert [agent.retrieve(self.number, self.models) for agent in self.agents] == [{}] * N
        self.retrievals = [agent.report(self.number) for agent in self.agents]

    def commit(self) -> None:
        """All commit."""
        self.commitments = [a.commit(self.number, self.retrievals, evaluate) for a in self.agents]

    def reveal(self) -> None:
        """All reveal."""
        self.openings = [agent.reveal(self.number, self.commitments) for agent in self.agents]

    def aggregate(self, agent: int = 0, openings: Sequence[Scores] | None = None) -> dict[str, Any]:
        """What an agent computes."""
        said = self.openings if openings is None else openings
        return self.agents[agent].aggregate(self.number, self.commitments, said, FIRST)

    def play(self, until: str = "") -> "Round":
        """All stages before `until`."""
        for stage in ("train", "retrieve", "commit", "reveal"):
            if stage == until:
                break
            getattr(self, stage)()
        return self


def test_all_compute_the_same_model_with_the_weights_of_the_rule(tmp_path):
    played = Round(tmp_path).play()
    table = np.array([opening.row for opening in played.openings])
    expected = weighted_mean([trained(n) for n in range(N)], score(table).overall)
    for agent in range(N):
        assert np.array_equal(played.aggregate(agent)["w"], expected["w"])
        played.agents[agent].check(expected, played.aggregate(agent))


@pytest.mark.parametrize("peers", [PEERS, DRAWN], ids=["all", "drawn"])
def test_the_ledger_agrees(tmp_path, ledger: Ledger, owner: LocalAccount, peers: Peers):
    token = ledger.deploy(owner, "RewardToken", 10**6)
    terms = Terms(bytes(32), 2, N, 100, 10, (3600,) * 6, peers.auditors)
    accounts = [account.address for account in ACCOUNTS]
    experiment = Experiment.deploy(ledger, owner, token.address, terms, accounts)
    for account in accounts:
        token.transact(owner, "transfer", account, 100)
    experiment.join([experiment.permit(token, account, 2**64) for account in ACCOUNTS])
    for number in range(2):
        played = Round(tmp_path, replace(peers, domain=experiment.domain), number).play()
        assert experiment.submit([said for said, _ in played.models]) == []
        assert experiment.retrieve(played.retrievals) == []
        assert experiment.commit(played.commitments) == []
        experiment.score(played.openings)
    assert experiment.progress.stage is Stage.FINISHED
    for found in experiment.history().rounds:
        models = [trained(agent) for agent in found.overall]
        expected = weighted_mean(models, list(found.overall.values()))
        assert np.array_equal(played.aggregate()["w"], expected["w"])


@pytest.mark.parametrize("peers", [PEERS, DRAWN], ids=["all", "drawn"])
def test_an_agent_that_is_killed_after_every_step_says_the_same_again(tmp_path, peers):
    played = Round(tmp_path, peers)
    for stage in ("train", "retrieve", "commit", "reveal"):
        played.play(until=stage)
        getattr(played, stage)()
        before = dict(vars(played))
        played.restart()
        getattr(played, stage)()
        for name in ("models", "retrievals", "commitments", "openings"):
            assert before.get(name) == vars(played).get(name)


def test_what_was_said_of_a_model_is_not_said_of_another(tmp_path):
    agent = Auditor(tmp_path, ACCOUNTS[0], PEERS)
    first = agent.contribute(0, trained(0))
    assert agent.contribute(0, trained(1)) == agent.contribute(0, SAME_SIZE) == first
    assert agent.contribute(1, trained(1)) != agent.contribute(0, trained(1))


def test_commitments_hide_scores_that_anybody_could_guess(tmp_path):
    one, other = Round(tmp_path / "one").play("reveal"), Round(tmp_path / "two").play("reveal")
    assert one.commitments[0] != other.commitments[0]


# --- models that can't be used -------------------------------------------------------------------


def sealed_as(
    arrays: Arrays | bytes, agent: int = 1, **changes: Any
) -> tuple[tuple[TrainedModel, bytes], bytes]:
    """A model of an agent that does not follow the protocol."""
    packed = arrays if isinstance(arrays, bytes) else pack(arrays)
    draft = replace(TrainedModel(agent, 0, digest(packed), b""), **changes)
    sealed = seal(packed, KEYS, PEERS.binding(draft))
    model = replace(draft, cid=cid_to_bytes(cid_of(sealed)))
    return (model, sign(model.encode(PEERS.domain), ACCOUNTS[agent])), sealed


SAME_SIZE = {"v": TRUTH}
UNUSABLE = {
    "another format": (sealed_as(SAME_SIZE), "'w' is missing"),
    "no arrays at all": (sealed_as(b"x" * PEERS.model.nbytes), "header"),
    "not finite": (sealed_as({"w": TRUTH * np.nan}), "not finite"),
    "oversized": (sealed_as({"w": np.zeros(4, np.float32)}), "but a sealed model has"),
    "another digest": (sealed_as(trained(1), digest=b"\1" * 32), "digest"),
    "another round": (sealed_as(trained(1), round=1), "not signed by agent 1 for round 0"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_model_that_can_not_be_used_costs_that_model(tmp_path, what):
    bad, word = UNUSABLE[what]
    played = Round(tmp_path).play("retrieve")
    played.models[1] = bad
    agent = played.agents[0]
    (fault,) = agent.retrieve(0, played.models).values()
    assert word in fault
    assert agent.report(0)[0].retrieved == (0, 2, 3, 4)


def test_what_another_signed_is_not_taken_for_an_agents(tmp_path):
    played = Round(tmp_path).play("retrieve")
    (model, _), sealed = played.models[1]
    forged = (model, sign(model.encode(PEERS.domain), ACCOUNTS[2])), sealed
    nobodys = (replace(model, agent=N), forged[0][1]), sealed
    assert set(played.agents[0].retrieve(0, [forged, nobodys])) == {1, N}


def test_bytes_that_were_changed_on_the_way_are_not_opened(tmp_path):
    played = Round(tmp_path).play("retrieve")
    said, sealed = played.models[1]
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    assert "was signed" in played.agents[0].retrieve(0, [(said, changed)])[1]


def test_a_second_model_of_an_agent_does_not_take_the_place_of_the_first(tmp_path):
    """Or it would be aggregated with the scores of the first."""
    played = Round(tmp_path).play()
    before = played.aggregate()
    assert "has signed another model" in played.agents[0].retrieve(0, [sealed_as(trained(4))])[1]
    assert played.agents[0].retrieve(0, played.models) == {}
    assert np.array_equal(played.aggregate()["w"], before["w"])


def test_a_model_must_be_in_order_before_an_agent_signs_for_it(tmp_path):
    agent = Auditor(tmp_path, ACCOUNTS[0], PEERS)
    for wrong in (SAME_SIZE, {"w": TRUTH * np.inf}):
        with pytest.raises(FormatError):
            agent.contribute(0, wrong)


# --- relays that can't be trusted ----------------------------------------------------------------


def test_a_model_that_was_withheld_may_come_later_from_anybody(tmp_path):
    played = Round(tmp_path).play("retrieve")
    agent = played.agents[0]
    agent.retrieve(0, played.models[:4])
    played.retrievals = [agent.report(0)]
    for other in played.agents[1:]:
        other.retrieve(0, played.models)
        played.retrievals.append(other.report(0))
    with pytest.raises(TaskRefused, match=r"the models of agents \[4\] are missing"):
        agent.commit(0, played.retrievals, evaluate)
    agent.retrieve(0, played.models[4:])
    assert agent.report(0) == played.retrievals[0]
    agent.commit(0, played.retrievals, evaluate)


def test_an_agent_scores_also_who_is_said_to_have_failed(tmp_path):
    """Or a relay that forgets somebody's report would make an honest agent give zeros."""
    played = Round(tmp_path).play("commit")
    agent = played.agents[0]
    commitment = agent.commit(0, played.retrievals[:4], evaluate)
    opening = agent.reveal(0, [commitment, *Round(tmp_path).play("reveal").commitments[1:]])
    assert opening.row[4] == round(ONE * evaluate(trained(4)))


def test_who_failed_itself_does_not_commit(tmp_path):
    played = Round(tmp_path).play("commit")
    with pytest.raises(TaskRefused, match="agent 0 did not pass"):
        played.agents[0].commit(0, played.retrievals[1:], evaluate)


def test_a_report_that_was_not_signed_by_its_agent_does_not_count(tmp_path):
    played = Round(tmp_path).play("commit")
    forged = [(said, played.retrievals[0][1]) for said, _ in played.retrievals[1:]]
    with pytest.raises(TaskRefused, match="did not pass"):
        played.agents[0].commit(0, [played.retrievals[0], *forged], evaluate)


def test_a_score_outside_0_and_1_is_told(tmp_path):
    played = Round(tmp_path).play("commit")
    with pytest.raises(FormatError, match=r"1\.5 is not a score"):
        played.agents[0].commit(0, played.retrievals, lambda _: 1.5)


def test_scores_are_revealed_when_all_have_committed_or_nobody_can_any_more(tmp_path):
    played = Round(tmp_path).play("reveal")
    agent = played.agents[0]
    with pytest.raises(TaskRefused, match=r"agents \[3, 4\] have not committed yet"):
        agent.reveal(0, played.commitments[:3])
    forged = [(replace(said, agent=3), s) for said, s in played.commitments[:1]]
    with pytest.raises(TaskRefused, match=r"agents \[3\] have not committed yet"):
        agent.reveal(0, [*played.commitments[:3], *forged, played.commitments[4]])
    played.clock.now += COMMIT_SECONDS
    assert agent.reveal(0, played.commitments[:3]).agent == 0


def test_a_relay_that_keeps_a_report_back_hears_the_scores_before_its_agent_commits(tmp_path):
    """Told in docs/blockflow.md: an agent without a node can't know better."""
    played = Round(tmp_path).play("commit")
    played.retrievals = played.retrievals[:4]
    played.commitments = [a.commit(0, played.retrievals, evaluate) for a in played.agents[:4]]
    assert [a.reveal(0, played.commitments).agent for a in played.agents[:4]] == [0, 1, 2, 3]


def test_an_agent_that_evaluates_for_long_has_the_whole_of_the_next_stage_to_reveal(tmp_path):
    played = Round(tmp_path).play("commit")
    agent = played.agents[0]

    def slow(model: Arrays) -> float:
        played.clock.now += COMMIT_SECONDS / N
        return evaluate(model)

    commitment = agent.commit(0, played.retrievals, slow)
    assert agent.reveal(0, [commitment]).agent == 0


def test_nobody_reveals_or_aggregates_before_it_has_committed(tmp_path):
    played = Round(tmp_path).play("commit")
    with pytest.raises(TaskRefused, match="agent 0 has not committed"):
        played.agents[0].reveal(0, [])


def test_who_did_not_reveal_has_no_say(tmp_path):
    played = Round(tmp_path).play()
    without = played.openings[:4]
    table = np.array([opening.row[:4] for opening in without])
    expected = weighted_mean([trained(n) for n in range(4)], score(table).overall)
    assert np.array_equal(played.aggregate(0, without)["w"], expected["w"])


@pytest.mark.parametrize(
    "change",
    [
        {"row": (ONE,) * N},
        {"salt": b"\1" * 32},
        {"row": (0,) * (N - 1)},
        {"row": (-1,) * N},
        {"agent": 2},
        {"agent": N},
    ],
)
def test_scores_that_were_not_committed_to_are_not_used(tmp_path, change):
    played = Round(tmp_path).play()
    openings = [*played.openings[:3], replace(played.openings[3], **change)]
    with pytest.raises(TaskRefused, match=r"agent \d did not commit to that"):
        played.aggregate(0, openings)


def test_scores_of_who_did_not_pass_are_not_used(tmp_path):
    """It may have signed a commitment, and the relay may pass it on."""
    played = Round(tmp_path).play("commit")
    agent = played.agents[0]
    agent.commit(0, played.retrievals[:4], evaluate)
    for each in played.agents[1:]:
        each.commit(0, played.retrievals, evaluate)
    played.commit()
    played.reveal()
    with pytest.raises(TaskRefused, match="agent 4 did not commit to that"):
        played.aggregate(0)


def test_an_agents_own_scores_can_not_be_left_out(tmp_path):
    played = Round(tmp_path).play()
    with pytest.raises(TaskRefused, match="the scores of agent 0 are missing"):
        played.aggregate(0, played.openings[1:])


def test_an_aggregate_that_the_server_made_up_is_not_trained_on(tmp_path):
    played = Round(tmp_path).play()
    expected = played.aggregate()
    falsified = {"w": expected["w"] + np.float32(1e-6)}
    with pytest.raises(TaskRefused, match="the aggregate of what was revealed"):
        played.agents[0].check(expected, falsified)


def test_with_no_score_at_all_the_model_stays(tmp_path):
    played = Round(tmp_path).play("commit")
    played.commitments = [a.commit(0, played.retrievals, lambda _: 0.0) for a in played.agents]
    played.reveal()
    assert np.array_equal(played.aggregate()["w"], FIRST["w"])


def test_a_stranger_is_no_agent(tmp_path):
    with pytest.raises(TaskRefused, match="is none of the agents"):
        Auditor(tmp_path, Account.create(), PEERS)


def test_agents_are_told_in_order(tmp_path):
    with pytest.raises(FormatError, match="each once, in ascending order"):
        replace(PEERS, keys=KEYS[::-1])


# --- drawn auditors ------------------------------------------------------------------------------


def drawn(played: Round) -> dict[int, list[int]]:
    """Who audits whom, by what all agents told."""
    return draw(seed_of(said.secret for said, _ in played.retrievals), range(N), 2)


def test_an_agent_scores_only_the_models_that_it_was_drawn_for(tmp_path):
    played = Round(tmp_path, DRAWN).play("commit")
    for agent in played.agents:
        evaluated: list[float] = []
        agent.commit(0, played.retrievals, lambda model, to=evaluated: to.append(1) or 1.0)
        assert len(evaluated) == 2
    played.commit()
    played.reveal()
    assert all(opening.row == (ONE, ONE) for opening in played.openings)


def test_drawn_auditors_compute_the_model_with_the_weights_of_the_rule(tmp_path):
    played = Round(tmp_path, DRAWN).play()
    rows = {opening.agent: opening.row for opening in played.openings}
    overall = score(*table(rows, drawn(played))).overall
    expected = weighted_mean([trained(n) for n in range(N)], overall)
    for agent in range(N):
        assert np.array_equal(played.aggregate(agent)["w"], expected["w"])


def test_the_secret_is_on_the_disk_when_the_lot_leaves(tmp_path):
    played = Round(tmp_path, DRAWN).play("retrieve")
    said = played.models[0][0][0]
    (kept,) = (tmp_path / "0").rglob("secret")
    secret = bytes.fromhex(json.loads(kept.read_bytes())["secret"])
    assert said.lot == lot_of(0, 0, secret, DRAWN.domain)
    assert len({model.lot for (model, _), _ in played.models}) == N


def test_nobody_tells_its_secret_as_long_as_another_can_still_choose(tmp_path):
    played = Round(tmp_path, DRAWN).play("retrieve")
    agent = played.agents[0]
    agent.retrieve(0, played.models[:3])
    with pytest.raises(TaskRefused, match=r"agents \[3, 4\] can still submit models"):
        agent.report(0)
    played.clock.now += DRAWN.train_seconds
    assert agent.report(0)[0].retrieved == (0, 1, 2)


def test_who_was_out_before_is_not_waited_for(tmp_path):
    played = Round(tmp_path, DRAWN).play("retrieve")
    agents = played.agents[:4]
    played.clock.now += DRAWN.train_seconds
    for agent in agents:
        agent.retrieve(0, played.models[:4])
    said = [agent.report(0) for agent in agents]
    for agent in agents:
        agent.commit(0, said, evaluate)
    models = [agent.contribute(1, trained(agent.number)) for agent in agents]
    agents[0].retrieve(1, models[:3])
    with pytest.raises(TaskRefused, match=r"agents \[3\] can still"):
        agents[0].report(1)
    agents[0].retrieve(1, models[3:])
    assert agents[0].report(1)[0].retrieved == (0, 1, 2, 3)


def test_who_submitted_no_model_has_no_secret_to_tell(tmp_path):
    agent = Auditor(tmp_path, ACCOUNTS[0], DRAWN)
    with pytest.raises(TaskRefused, match="agent 0 has not submitted a model"):
        agent.report(0)


def test_a_secret_counts_also_of_a_model_that_can_not_be_used(tmp_path):
    played = Round(tmp_path, DRAWN).play("retrieve")
    (said, signature), sealed = played.models[4]
    for agent in played.agents:
        agent.retrieve(0, [*played.models[:4], ((said, signature), sealed[:-1])])
    played.retrievals = [agent.report(0) for agent in played.agents]
    assert all(4 not in found.retrieved for found, _ in played.retrievals[:4])
    played.commitments = [a.commit(0, played.retrievals, evaluate) for a in played.agents[:4]]
    played.openings = [agent.reveal(0, played.commitments) for agent in played.agents[:4]]
    audits = draw(seed_of(found.secret for found, _ in played.retrievals), range(4), 2)
    rows = {opening.agent: opening.row for opening in played.openings}
    expected = weighted_mean([trained(n) for n in range(4)], score(*table(rows, audits)).overall)
    assert np.array_equal(played.aggregate()["w"], expected["w"])


def test_nobody_is_drawn_by_a_secret_that_was_not_chosen_before(tmp_path):
    """Who tells another one, or told none, did not report."""
    played = Round(tmp_path, DRAWN).play("commit")
    changed = replace(played.retrievals[4][0], secret=b"\1" * 32)
    signed = changed, sign(changed.encode(DRAWN.domain), ACCOUNTS[4])
    played.agents[0].commit(0, [*played.retrievals[:4], signed], evaluate)
    seed = seed_of(said.secret for said, _ in played.retrievals[:4])
    kept = json.loads((tmp_path / "0/round-0/scores").read_bytes())
    assert (kept["seed"], kept["live"]) == (seed.hex(), [0, 1, 2, 3])


def test_an_agent_does_not_choose_another_secret(tmp_path):
    played = Round(tmp_path, DRAWN).play()
    before = played.aggregate()
    (model, _), sealed = played.models[1]
    other = replace(model, lot=b"\1" * 32)
    faults = played.agents[0].retrieve(
        0, [((other, sign(other.encode(DRAWN.domain), ACCOUNTS[1])), sealed)]
    )
    assert "has signed another lot before" in faults[1]
    assert np.array_equal(played.aggregate()["w"], before["w"])


def test_drawn_auditors_give_as_many_scores_as_they_were_drawn_for(tmp_path):
    played = Round(tmp_path, DRAWN).play()
    for row in ((ONE,), (ONE,) * N):
        openings = [*played.openings[:3], replace(played.openings[3], row=row)]
        with pytest.raises(TaskRefused, match="agent 3 did not commit to that"):
            played.aggregate(0, openings)


def test_who_draws_must_know_how_long_models_can_be_submitted():
    with pytest.raises(FormatError, match="how long models can be submitted"):
        replace(PEERS, auditors=2)
