"""A BlockFLow experiment recomputed, and every change to it found."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from experiment import Experiment as Flowers
from federation import give
from play import OWNER, READER, Play
from softmax import examiner, fresh

from flower_chain.errors import ConfigError, Unverified
from flower_chain.ledger import Contract
from flower_chain.ledger.blockflow import Experiment, History, Stage
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import BlockFlowRun, open_run
from flower_chain.run import blockflow as run_module
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import Format
from flower_chain.verify import Report, verify

EVERYBODY, OTHERS = (0, 1, 2, 3), (0, 1, 2)
OWN_DATA = "the agents' scores: each measured them on its own data"
Change = Callable[[History], None]


def play_all(path: Path) -> Play:
    """Two rounds of four agents; the model of the last one can't be opened in the second."""
    play = Play(path, rounds=2, quorum=3)
    play.join(EVERYBODY)
    play.play(EVERYBODY)
    play.train(OTHERS)
    rubbish = play.contribution(3, {"rubbish": fresh()["bias"]})
    play.experiment.submit([play.signed(rubbish)])
    play.retrieve(EVERYBODY, OTHERS)
    play.commit(OTHERS)
    play.score(OTHERS)
    play.publish()
    play.experiment.claim(OTHERS)
    play.run.contract.transact(OWNER, "withdraw", play.accounts[1].address)
    play.run.close()
    return play


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Play:
    return play_all(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def play(finished: Play, tmp_path: Path) -> Play:
    """A copy to do harm to."""
    harmed = copy(finished)
    harmed.path = Path(shutil.copytree(finished.path, tmp_path / "run"))
    return harmed


def check(play: Play, reader: LocalAccount | None = READER) -> Report:
    """The last report."""
    play.run.close()
    with closing(open_run(play.path)) as opened:
        *_, report = verify(opened, reader)
    return report


def found(play: Play, match: str, reader: LocalAccount | None = None) -> None:
    """Assert that this is found to be wrong."""
    with pytest.raises(Unverified, match=match):
        check(play, reader)


def with_history(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """A ledger that tells a changed history."""
    told = Experiment.history

    def tell(experiment: Experiment) -> History:
        history = told(experiment)
        change(history)
        return history

    monkeypatch.setattr(Experiment, "history", tell)


def history_of(play: Play) -> History:
    """From the ledger."""
    with closing(BlockFlowRun.open(play.path)) as run:
        return run.experiment.history()


def stored(play: Play, cid: bytes) -> Path:
    """The file of what is stored under it."""
    (file,) = (play.path / "store").rglob(f"*{cid_from_bytes(cid)}*")
    return file


# --- nothing is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [None, 0, 3])
def test_agents_and_readers_can_check_everything(finished, number):
    report = check(finished, READER if number is None else finished.accounts[number])
    assert report.checked == {
        "contracts": 1,
        "terms": 11,
        "models": 3,
        "signatures": 23,
        "openings": 7,
        "stages": 8,
        "overall scores": 7,
        "refunds": 7,
        "stored models": 7,
        "opened models": 7,
        "aggregates": 2,
        "balances": 5,
    }
    word = "1 models of agents that were eliminated, or signed nothing: they count for nothing"
    assert report.unchecked == [OWN_DATA, word]


def test_an_outsider_is_told_what_was_not_checked(finished):
    report = check(finished, None)
    assert (report.checked["signatures"], report.checked["stored models"]) == (23, 7)
    assert not {"opened models", "aggregates"} & set(report.checked)
    assert "what the sealed models hold" in report.unchecked[1]


def test_an_experiment_through_flower_fits(tmp_path):
    agents = Flowers(tmp_path, 3)
    outcome = agents.run(rounds=2)
    with closing(open_run(outcome.path)) as run:
        *_, report = verify(run, agents.accounts[0])
    assert (report.checked["aggregates"], report.checked["signatures"]) == (2, 18)
    assert report.unchecked == [OWN_DATA]


def drawn(path: Path) -> Play:
    """A round of five agents that audit two models each, and in which one does not commit."""
    play = Play(path, agents=5, auditors=2)
    play.join(range(5))
    play.train(range(5))
    play.retrieve(range(5), range(5))
    play.commit(EVERYBODY)
    play.wait()
    play.score(EVERYBODY)
    play.publish()
    return play


def test_drawn_auditors_fit(tmp_path):
    report = check(drawn(tmp_path))
    assert (report.checked["draws"], report.checked["overall scores"]) == (1, 4)
    assert (report.checked["aggregates"], report.checked["signatures"]) == (1, 14)


@pytest.mark.parametrize("account", [OWNER, Account.create()], ids=["owner", "stranger"])
def test_a_key_that_opens_nothing_is_told(finished, account):
    with pytest.raises(ConfigError, match=f"that of {account.address}, for whom nothing"):
        check(finished, account)


def test_there_is_no_examiner(finished):
    with closing(open_run(finished.path)) as run, pytest.raises(ConfigError, match="no Examiner"):
        verify(run, None, examiner())


# --- while it goes on ----------------------------------------------------------------------------


def test_each_stage_can_be_checked_while_it_lasts(tmp_path):
    play = Play(tmp_path)
    steps = [
        ("enrol", lambda: play.join(EVERYBODY)),
        ("train", lambda: play.train(EVERYBODY)),
        ("retrieve", lambda: play.retrieve(EVERYBODY, EVERYBODY)),
        ("commit", lambda: play.commit(EVERYBODY)),
        ("reveal", lambda: play.experiment.reveal([play.scores(k) for k in EVERYBODY])),
        ("score", lambda: play.score(EVERYBODY)),
    ]
    for stage, act in steps:
        *_, report = verify(play.run, READER)
        assert report.unchecked[-1] == f"round 0: it is at the stage {stage}"
        act()
    *_, report = verify(play.run, READER)
    assert report.unchecked[-1] == "round 1, model: the owner has not announced it"
    assert "aggregates" not in report.checked


def test_a_withdrawal_meanwhile_is_told(play):
    with closing(open_run(play.path, OWNER)) as run:
        steps = verify(run)
        next(steps)
        run.contract.transact(OWNER, "withdraw", play.accounts[0].address)
        *_, report = steps
    assert report.unchecked[-2] == "balances: the run went on while it was checked"


# --- who fails -----------------------------------------------------------------------------------


def test_too_few_bonds_go_back(tmp_path):
    play = Play(tmp_path)
    play.join(OTHERS)
    play.wait()
    assert check(play).checked["refunds"] == 3


def test_who_is_late_in_a_stage_is_out(tmp_path):
    play = Play(tmp_path, agents=8, quorum=7)
    play.join(range(7))
    play.wait()
    play.train(range(6))
    play.wait()
    play.retrieve(range(5), range(6))
    play.wait()
    play.commit(range(4))
    play.wait()
    play.experiment.reveal([play.scores(agent) for agent in OTHERS])
    play.wait()
    play.score(OTHERS)
    play.publish()
    report = check(play)
    assert (report.checked["refunds"], report.checked["aggregates"]) == (3, 1)


def test_if_nobody_acts_the_experiment_ends(tmp_path):
    play = Play(tmp_path, rounds=2)
    play.join(EVERYBODY)
    play.train(OTHERS)
    play.wait()
    play.wait()
    assert play.experiment.progress.stage is Stage.FINISHED
    assert check(play).checked["refunds"] == 3


def test_if_nobody_computes_the_scores_all_get_the_same_and_the_model_is_the_mean(tmp_path):
    play = Play(tmp_path, rounds=2)
    play.join(EVERYBODY)
    play.train(EVERYBODY)
    play.retrieve(EVERYBODY, EVERYBODY)
    play.commit(EVERYBODY)
    play.experiment.reveal([play.scores(agent) for agent in EVERYBODY])
    play.wait()
    assert set(play.experiment.history().rounds[0].refunded.values()) == {TOKEN_UNITS}
    report = check(play)
    assert "overall scores" not in report.checked
    assert report.checked["openings"] == report.checked["refunds"] == 4


def test_a_model_that_is_worth_nothing_to_all_stays_also_for_who_has_no_key(tmp_path):
    play = Play(tmp_path, rounds=2)
    play.join(EVERYBODY)
    play.play(EVERYBODY, worth=0)
    assert check(play, None).checked["aggregates"] == 1


# --- what was agreed -----------------------------------------------------------------------------


def test_a_changed_plan_is_found(play):
    pointers = json.loads((play.path / "run.json").read_text())
    plan = json.loads(pointers["plan"]) | {"metric": "f1"}
    pointers["plan"] = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    (play.path / "run.json").write_text(json.dumps(pointers))
    found(play, "plan: its digest")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rounds": 3}, "rounds is 1, but the contract enforces 3"),
        ({"quorum": 2}, "quorum is 4, but the contract enforces 2"),
        ({"bond": 6 * TOKEN_UNITS}, "bond is 5000000000000000000, but"),
        ({"auditors": 2}, "auditors is 0, but the contract enforces 2"),
        ({"stake": 0}, "stake is 1000000000000000000, but the contract enforces 0"),
        (
            {"seconds": (7, 24, 12, 12, 12, 12)},
            "enrol lasts 12 seconds, but the contract enforces 7",
        ),
    ],
)
def test_terms_that_the_contract_does_not_enforce_are_found(tmp_path, monkeypatch, change, match):
    honest = run_module._terms
    monkeypatch.setattr(run_module, "_terms", lambda plan: replace(honest(plan), **change))
    found(Play(tmp_path), f"plan: {match}")


def test_other_seconds_of_a_later_stage_are_found_when_it_begins(tmp_path, monkeypatch):
    honest, seconds = run_module._terms, (12, 20, 12, 12, 12, 12)
    monkeypatch.setattr(run_module, "_terms", lambda plan: replace(honest(plan), seconds=seconds))
    play = Play(tmp_path)
    list(verify(play.run))
    play.join(EVERYBODY)
    found(play, "plan: train lasts 24 seconds, but the contract enforces 20")


@pytest.mark.parametrize(
    ("accounts", "match"),
    [
        (lambda agents: agents[:3], "agentCount is 4, but the contract enforces 3"),
        (lambda agents: [*agents[:3], "0x" + 40 * "f"], "agent 3 is 0x"),
    ],
)
def test_other_agents_are_found(tmp_path, monkeypatch, accounts, match):
    honest = Experiment.deploy
    monkeypatch.setattr(Experiment, "deploy", lambda *given: honest(*given[:4], accounts(given[4])))
    found(Play(tmp_path, quorum=1), f"plan: {match}")


# --- what agents said ----------------------------------------------------------------------------


def another_model(history: History) -> None:
    """The ledger tells another digest than was signed."""
    record = history.rounds[0]
    model = record.contributions[0]
    forged = record.contributions[0] = replace(model, digest=b"\1" * 32)
    record.sent[forged] = record.sent.pop(model)


def another_retrieval(history: History) -> None:
    """Nobody has the model of agent 2."""
    retrievals = history.rounds[0].retrievals
    for agent in (0, 1, 3):
        retrievals[agent] = replace(retrievals[agent], retrieved=(0, 1, 3))


def another_salt(history: History) -> None:
    openings = history.rounds[1].openings
    openings[1] = replace(openings[1], salt=bytes(32))


def act_when_out(history: History) -> None:
    second = history.rounds[1]
    second.commitments[3] = replace(second.commitments[0], agent=3)


def eliminate(history: History) -> None:
    history.rounds[0].eliminated[2] = Stage.COMMIT


def another_score(history: History) -> None:
    history.rounds[0].overall[0] += 1


def another_refund(history: History) -> None:
    history.rounds[1].refunded[2] += 1


def another_credit(history: History) -> None:
    history.credited[next(iter(history.credited))] += 1


def another_withdrawal(history: History) -> None:
    history.withdrawn[next(iter(history.credited))] += 1


def a_stranger(history: History) -> None:
    """Whose credit is withdrawn, so that the contract's books don't show it."""
    stranger = "0x" + 40 * "1"
    history.credited[stranger] = history.withdrawn[stranger] = 1


def another_secret(history: History) -> None:
    retrievals = history.rounds[0].retrievals
    retrievals[1] = replace(retrievals[1], secret=bytes(32))


def another_lot(history: History) -> None:
    """The ledger tells another one than was signed."""
    record = history.rounds[0]
    model = record.contributions[1]
    forged = replace(model, lot=b"\1" * 32)
    record.sent = {forged if said == model else said: by for said, by in record.sent.items()}


def another_signature(history: History) -> None:
    record = history.rounds[0]
    place = list(record.sent).index(record.retrievals[2])
    record.signatures[place] = record.signatures[0]


def other_auditors(history: History) -> None:
    audits = history.rounds[0].audits
    audits[0], audits[1] = audits[1], audits[0]


def another_bond(history: History) -> None:
    history.joined.remove(3)


def two_models(history: History) -> None:
    history.announced[1][b"\1" * 32] = next(iter(history.announced[1].values()))


def no_model(history: History) -> None:
    del history.announced[1]


def another_first_model(history: History) -> None:
    history.announced[0] = history.announced[1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (another_model, r"round 0, TrainedModel of agent 0 \(0x\w+\): not signed in the trans"),
        (another_retrieval, r"round 0, retrieve: agents \[\] were eliminated, by the rules \[2\]"),
        (another_salt, r"round 1, scores of agent 1 \(0x\w+\): not what it committed to"),
        (act_when_out, r"round 1, commit: agents \[3\] acted, but were out"),
        (eliminate, r"round 0, commit: agents \[2\] were eliminated, by the rules \[\]"),
        (another_score, r"round 0, overall score of agent 0 \(0x\w+\): \d+, by the rules \d+"),
        (another_refund, r"round 1, refund of agent 2 \(0x\w+\): \d+, by the rules \d+"),
        (another_credit, r"refunds of agent \d \(0x\w+\): \d+ in all, but \d+ credited"),
        (another_withdrawal, r"credits of 0x\w+: \d+, but its payments leave"),
        (a_stranger, f"credits of 0x{40 * '1'}: it is no agent"),
        (another_bond, r"round 0, train: agents \[3\] acted, but were out"),
        (two_models, "round 1, model: the owner announced 2, not one"),
        (no_model, "round 1, model: the owner announced 0, not one"),
        (another_first_model, r"round 0, model: its digest is \w+, the plan's"),
    ],
)
def test_what_the_ledger_tells_wrongly_is_found(finished, monkeypatch, change, match):
    with_history(monkeypatch, change)
    found(finished, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (another_secret, r"round 0, secret of agent 1 \(0x\w+\): not the one it had chosen before"),
        (another_lot, r"round 0, TrainedModel of agent 1 \(0x\w+\): not signed in the trans"),
        (another_signature, r"round 0, Retrieval of agent 2 \(0x\w+\): not signed in the trans"),
        (other_auditors, "round 0: the auditors are not those that were drawn"),
    ],
)
def test_what_the_ledger_tells_wrongly_of_a_draw_is_found(tmp_path, monkeypatch, change, match):
    play = drawn(tmp_path)
    with_history(monkeypatch, change)
    found(play, match)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("held", r"bonds: the contract holds \d+, by the refunds \d+"),
        ("totalCredits", r"credits: the contract says \d+ in all, its events \d+"),
        ("balanceOf", r"tokens: \d+ held, but \d+ owed"),
    ],
)
def test_money_that_is_not_there_is_found(finished, monkeypatch, function, match):
    told = Contract.call

    def tell(contract: Contract, name: str, *args: object) -> Any:
        return told(contract, name, *args) - 1 if name == function else told(contract, name, *args)

    monkeypatch.setattr(Contract, "call", tell)
    found(finished, match)


def test_another_token_in_the_pointers_is_found(play):
    pointers = json.loads((play.path / "run.json").read_text())
    (play.path / "run.json").write_text(json.dumps(pointers | {"token": pointers["contract"]}))
    found(play, f"token: run.json says {pointers['contract']}")


def test_what_agents_sent_themselves_needs_no_signature(tmp_path, anvil):
    """By a transaction of its own, or by who packs several calls into one."""
    give(anvil, OWNER.address)
    play = Play(tmp_path, agents=3, where=anvil)
    own, *_ = play.accounts
    give(anvil, own.address)
    play.join(OTHERS)
    models = [play.contribution(agent) for agent in OTHERS]
    items = [(m.agent, m.digest, m.cid, m.lot, s[:32], s[32:]) for m, s in map(play.signed, models)]
    unsigned, packed = (*items[0][:4], bytes(32), bytes(32)), items[1:2]
    contract = play.run.contract
    contract.transact(own, "submit", [unsigned])
    contract.transact(OWNER, "multicall", [contract.encode("submit", packed)])
    contract.transact(OWNER, "submit", items[2:])
    report = check(play)
    assert (report.checked["own transactions"], report.checked["signatures"]) == (1, 1)
    assert report.unchecked[-1] == "1 signatures: other contracts relayed them"


# --- models --------------------------------------------------------------------------------------


def test_a_model_that_is_not_the_mean_is_found_by_who_has_a_key(tmp_path):
    play = Play(tmp_path, rounds=2)
    play.join(EVERYBODY)
    play.train(EVERYBODY)
    play.retrieve(EVERYBODY, EVERYBODY)
    play.commit(EVERYBODY)
    play.score(EVERYBODY)
    play.publish(play.trained(0, 0))
    assert "aggregates" not in check(play, None).checked
    found(play, "round 1, model: not the mean of what was scored", READER)


def test_a_model_that_does_not_stay_though_all_scores_are_zero_is_found(tmp_path):
    play = Play(tmp_path, rounds=2)
    play.join(EVERYBODY)
    play.train(EVERYBODY)
    play.retrieve(EVERYBODY, EVERYBODY)
    play.commit(EVERYBODY, worth=0)
    play.score(EVERYBODY, worth=0)
    play.publish(play.trained(0, 0))
    found(play, "round 1, model: not the mean of what was scored")


@pytest.mark.parametrize(
    "inside",
    [{"weight": fresh()["weight"] + 1, "bias": fresh()["bias"]}, {"other": fresh()["bias"]}],
    ids=["another", "of another format"],
)
def test_a_sealed_model_that_is_not_what_was_signed_is_found_by_who_has_a_key(tmp_path, inside):
    play = Play(tmp_path)
    play.join(EVERYBODY)
    play.train(OTHERS)
    play.experiment.submit([play.signed(play.contribution(3, inside))])
    play.retrieve(EVERYBODY, EVERYBODY)
    play.commit(EVERYBODY)
    play.score(EVERYBODY)
    play.publish()
    if Format.of(inside) == play.run.plan.model:
        check(play, None)
    found(play, r"round 0, model of agent 3 \(0x\w+\): ", READER)


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_trained_model_that_is_not_stored_is_found(play, harm):
    model = history_of(play).rounds[0].contributions[2]
    harm(stored(play, model.cid))
    found(play, r"round 0, model of agent 2 \(0x\w+\): ")


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_an_announced_model_that_is_not_stored_is_found(play, harm):
    (cid,) = history_of(play).announced[2].values()
    harm(stored(play, cid))
    found(play, "round 2, model: ")
