"""BlockFLow's contract through the package's words, on both ledgers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider
from web3.types import RPCEndpoint

from flower_chain.errors import FormatError, Reverted
from flower_chain.ledger import Contract, JsonRpcLedger, Ledger
from flower_chain.ledger import blockflow as module
from flower_chain.ledger.blockflow import Experiment, Fault, Permit, Rejection, Stage, Terms
from flower_chain.records import (
    Commitment,
    Retrieval,
    Scores,
    TrainedModel,
    lot_of,
    recover,
    sign,
)
from flower_chain.rules.blockflow import ONE, draw, refunds, score, seed_of, table

BOND, STAKE = 1000, 100
HOURS = (3600, 3600, 3600, 3600, 3600, 3600)
TERMS = Terms(b"\7" * 32, 2, 3, BOND, STAKE, HOURS)
CID = bytes.fromhex("01551220") + b"\xcd" * 32
FOREVER = 2**64
EVERYBODY = (0, 1, 2, 3)
MATRIX = np.array(
    [
        [60000, 50000, 40000, 100],
        [59000, 52000, 41000, 0],
        [61000, 51000, 42000, 300],
        [0, 0, 0, ONE],
    ]
)


@pytest.fixture
def agents(devices: list[LocalAccount]) -> list[LocalAccount]:
    """Four, by number."""
    return sorted(devices[:4], key=lambda account: account.address.lower())


@pytest.fixture
def token(ledger: Ledger, owner: LocalAccount, agents: list[LocalAccount]) -> Contract:
    """Enough for a bond with each agent."""
    token = ledger.deploy(owner, "RewardToken", 10**6)
    for agent in agents:
        token.transact(owner, "transfer", agent.address, BOND)
    return token


@pytest.fixture
def start(
    ledger: Ledger, owner: LocalAccount, agents: list[LocalAccount], token: Contract
) -> Callable[..., Experiment]:
    """Deploys an experiment that all agents have joined."""

    def start(terms: Terms = TERMS) -> Experiment:
        accounts = [agent.address for agent in reversed(agents)]
        experiment = Experiment.deploy(ledger, owner, token.address, terms, accounts)
        assert experiment.join([experiment.permit(token, a, FOREVER) for a in agents]) == []
        return experiment

    return start


@pytest.fixture
def experiment(start: Callable[..., Experiment]) -> Experiment:
    return start()


def models(experiment: Experiment, agents: list[LocalAccount]) -> list[tuple[TrainedModel, bytes]]:
    """What everybody trained, signed."""
    number = experiment.progress.round
    said = [TrainedModel(k, number, bytes([k]) * 32, CID) for k in EVERYBODY]
    return [(m, sign(m.encode(experiment.domain), agents[m.agent])) for m in said]


def retrievals(experiment: Experiment, agents: list[LocalAccount]) -> list[tuple[Retrieval, bytes]]:
    """Everybody retrieved everything."""
    said = [Retrieval(k, experiment.progress.round, EVERYBODY) for k in EVERYBODY]
    return [(r, sign(r.encode(experiment.domain), agents[r.agent])) for r in said]


def openings(number: int = 0) -> list[Scores]:
    """What everybody thinks."""
    return [Scores(k, number, tuple(MATRIX[k].tolist()), bytes([k]) * 32) for k in EVERYBODY]


def commitments(
    experiment: Experiment, agents: list[LocalAccount]
) -> list[tuple[Commitment, bytes]]:
    """What everybody commits to."""
    number, domain = experiment.progress.round, experiment.domain
    said = [Commitment(o.agent, number, o.commitment(domain)) for o in openings(number)]
    return [(c, sign(c.encode(domain), agents[c.agent])) for c in said]


def until_reveal(experiment: Experiment, agents: list[LocalAccount]) -> None:
    """Everybody does everything."""
    assert experiment.submit(models(experiment, agents)) == []
    assert experiment.retrieve(retrievals(experiment, agents)) == []
    assert experiment.commit(commitments(experiment, agents)) == []


def test_agents_are_numbered_by_account_whatever_order_they_are_told_in(experiment, agents):
    assert experiment.agents == [agent.address for agent in agents]
    assert [experiment.number_of(agent.address.lower()) for agent in agents] == list(EVERYBODY)


def test_every_stage_ends_when_everybody_has_acted(experiment, agents):
    progress = experiment.progress
    assert (progress.round, progress.stage, progress.live) == (0, Stage.TRAIN, EVERYBODY)
    assert progress.awaited == EVERYBODY
    experiment.submit(models(experiment, agents)[:3])
    assert experiment.progress.awaited == (3,)
    experiment.submit(models(experiment, agents)[3:])
    assert experiment.progress.stage is Stage.RETRIEVE
    experiment.retrieve(retrievals(experiment, agents))
    assert experiment.progress.stage is Stage.COMMIT
    experiment.commit(commitments(experiment, agents))
    assert experiment.progress.stage is Stage.REVEAL
    experiment.score(openings())
    assert (experiment.progress.round, experiment.progress.stage) == (1, Stage.TRAIN)


def test_a_round_is_scored_and_paid_as_the_rule_says(experiment, agents, token):
    for number in range(2):
        until_reveal(experiment, agents)
        experiment.score(openings(number))
    overall = score(MATRIX).overall
    first, last = experiment.history().rounds
    assert [*first.overall.values()] == [*last.overall.values()] == list(overall)
    assert [*first.refunded.values()] == refunds(4 * STAKE, overall)
    rest = BOND - 2 * STAKE
    assert [*last.refunded.values()] == [rest + share for share in refunds(4 * STAKE, overall)]
    assert experiment.progress.stage is Stage.FINISHED
    experiment.claim(EVERYBODY)
    for agent, account in enumerate(experiment.agents):
        earned = first.refunded[agent] + last.refunded[agent]
        assert experiment.contract.call("credits", account) == earned
    assert token.call("balanceOf", experiment.contract.address) == 4 * BOND
    assert experiment.contract.call("held") == 0


def test_the_ledger_holds_what_was_said(experiment, agents):
    experiment.publish(0, b"\3" * 32, CID)
    until_reveal(experiment, agents)
    experiment.reveal(openings()[:1])
    experiment.score(openings())
    history = experiment.history()
    first, second = history.rounds
    assert list(history.announced[0]) == [b"\3" * 32]
    assert first.contributions[1] == TrainedModel(1, 0, bytes([1]) * 32, CID)
    assert first.retrievals[2] == Retrieval(2, 0, EVERYBODY)
    assert first.commitments[1].digest == openings()[1].commitment(experiment.domain)
    assert [*first.openings.values()] == openings()
    assert first.eliminated == {}
    assert second.contributions == {}


def test_what_the_owner_announces_is_kept_also_if_it_contradicts_itself(experiment):
    for number, digest in ((0, b"\1"), (0, b"\2"), (2, b"\3")):
        experiment.publish(number, digest * 32, CID)
    announced = experiment.history().announced
    assert {n: list(named) for n, named in announced.items()} == {
        0: [b"\1" * 32, b"\2" * 32],
        2: [b"\3" * 32],
    }


def test_the_gas_of_a_transaction_is_that_of_one_round(experiment, agents, ledger):
    for number in range(2):
        until_reveal(experiment, agents)
        experiment.score(openings(number))
    one, other = (set(found.receipts) for found in experiment.history().rounds)
    assert not one & other
    logs = ledger.logs(experiment.contract.address)
    assert one | other == {log["transactionHash"].to_0x_hex() for log in logs}


def test_what_is_left_over_when_everybody_has_acted_is_not_sent(experiment, agents, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 5)
    batch = models(experiment, agents)
    copies = [batch[0], *batch, *batch]
    assert experiment.submit(copies) == [Rejection(0, Fault.SECOND_TIME)]
    assert experiment.progress.stage is Stage.RETRIEVE


def test_scores_may_be_revealed_one_by_one(experiment, agents):
    until_reveal(experiment, agents)
    for opening in openings():
        assert experiment.reveal([opening]) == []
    assert experiment.progress.stage is Stage.SCORE
    experiment.score(openings())
    assert experiment.progress.round == 1


@pytest.mark.parametrize("change", [{"salt": b"\1" * 32}, {"row": (1, 2, 3, 4)}])
def test_other_scores_than_those_committed_to_are_passed_over(experiment, agents, change):
    until_reveal(experiment, agents)
    wrong = replace(openings()[0], **change)
    assert experiment.reveal([wrong]) == [Rejection(0, Fault.WRONG_OPENING)]
    with pytest.raises(Reverted, match="DoesNotOpen"):
        experiment.score([wrong, *openings()[1:]])


def test_a_copied_commitment_can_not_be_opened(experiment, agents):
    experiment.submit(models(experiment, agents))
    experiment.retrieve(retrievals(experiment, agents))
    batch = commitments(experiment, agents)
    copied = replace(batch[0][0], agent=3)
    batch[3] = copied, sign(copied.encode(experiment.domain), agents[3])
    assert experiment.commit(batch) == []
    theirs = replace(openings()[0], agent=3)
    assert experiment.reveal([theirs]) == [Rejection(3, Fault.WRONG_OPENING)]


def test_a_bad_signature_costs_that_item(experiment, agents):
    batch = models(experiment, agents)
    batch[1] = batch[1][0], batch[0][1]
    assert experiment.submit([*batch, batch[0]]) == [
        Rejection(1, Fault.BAD_SIGNATURE),
        Rejection(0, Fault.SECOND_TIME),
    ]
    assert experiment.progress.awaited == (1,)
    (current,) = experiment.history().rounds
    assert current.rejections[0] == Rejection(1, Fault.BAD_SIGNATURE)


def test_signatures_are_those_that_recover_finds(experiment, agents):
    model, signature = models(experiment, agents)[2]
    assert recover(model.encode(experiment.domain), signature) == agents[2].address


def test_who_is_late_loses_its_bond_to_the_others(start, agents, ledger, owner, token):
    experiment = start(replace(TERMS, rounds=1, seconds=(3600, 60, 3600, 3600, 3600, 3600)))
    too_late = experiment.progress.deadline
    experiment.submit(models(experiment, agents)[:3])
    with pytest.raises(Reverted, match="TooEarly"):
        experiment.advance()
    if isinstance(ledger, JsonRpcLedger):
        HTTPProvider(str(ledger)).make_request(RPCEndpoint("evm_increaseTime"), [60])
    while ledger.time_of(token.transact(owner, "transfer", owner.address, 0).block) < too_late:
        pass  # on the embedded ledger every block is a second later at least
    experiment.advance()
    assert experiment.progress.live == (0, 1, 2)
    (current,) = experiment.history().rounds
    assert current.eliminated == {3: Stage.TRAIN}


def test_a_bond_that_was_not_approved_is_not_posted(ledger, owner, agents, token):
    accounts = [agent.address for agent in agents]
    experiment = Experiment.deploy(ledger, owner, token.address, TERMS, accounts)
    assert experiment.join([Permit(0)]) == [Rejection(0, Fault.BOND_NOT_POSTED)]


def test_an_agent_comes_once_however_it_is_written(ledger, owner, token):
    account = Account.create().address
    twice = [account, account.lower()]
    with pytest.raises(FormatError, match="2 agents, 1 of them different"):
        Experiment.deploy(ledger, owner, token.address, TERMS, twice)


def test_a_stranger_has_no_number(experiment, owner):
    with pytest.raises(FormatError, match="is none of the 4 agents"):
        experiment.number_of(owner.address)


# --- drawn auditors ------------------------------------------------------------------------------

DRAWN = replace(TERMS, auditors=2)
SECRETS = {agent: bytes([16 + agent]) * 32 for agent in EVERYBODY}


def drawn_models(
    experiment: Experiment, agents: list[LocalAccount]
) -> list[tuple[TrainedModel, bytes]]:
    """What everybody trained, with its lot, signed."""
    domain = experiment.domain
    said = [
        replace(model, lot=lot_of(model.agent, model.round, SECRETS[model.agent], domain))
        for model, _ in models(experiment, agents)
    ]
    return [(m, sign(m.encode(domain), agents[m.agent])) for m in said]


def drawn_retrievals(
    experiment: Experiment, agents: list[LocalAccount]
) -> list[tuple[Retrieval, bytes]]:
    """Everybody retrieved everything, and tells its secret."""
    said = [replace(r, secret=SECRETS[r.agent]) for r, _ in retrievals(experiment, agents)]
    return [(r, sign(r.encode(experiment.domain), agents[r.agent])) for r in said]


def drawn_openings(experiment: Experiment) -> list[Scores]:
    """What everybody thinks of the models that it was drawn for."""
    audits = experiment.audits()
    rows = [tuple(MATRIX[k, audits[k]].tolist()) for k in EVERYBODY]
    return [Scores(k, experiment.progress.round, rows[k], bytes([k]) * 32) for k in EVERYBODY]


def test_a_round_with_drawn_auditors_is_scored_as_the_rule_says(start, agents):
    experiment = start(DRAWN)
    for _ in range(2):
        assert experiment.submit(drawn_models(experiment, agents)) == []
        assert experiment.retrieve(drawn_retrievals(experiment, agents)[::-1]) == []
        assert experiment.audits() == draw(seed_of(SECRETS.values()), EVERYBODY, 2)
        given, domain = drawn_openings(experiment), experiment.domain
        said = [Commitment(o.agent, o.round, o.commitment(domain)) for o in given]
        assert experiment.commit([(c, sign(c.encode(domain), agents[c.agent])) for c in said]) == []
        experiment.score(given[::-1])
    assert experiment.progress.stage is Stage.FINISHED
    for found in experiment.history().rounds:
        assert found.audits == draw(seed_of(SECRETS.values()), EVERYBODY, 2)
        rows = {agent: opening.row for agent, opening in found.openings.items()}
        assert tuple(found.overall.values()) == score(*table(rows, found.audits)).overall
        for agent in EVERYBODY:
            secret, number = found.retrievals[agent].secret, found.number
            assert found.contributions[agent].lot == lot_of(agent, number, secret, domain)


def test_a_model_without_its_lot_is_passed_over(start, agents):
    experiment = start(DRAWN)
    assert experiment.submit(models(experiment, agents)[:1]) == [Rejection(0, Fault.MALFORMED)]


def test_the_ledger_holds_all_signatures_whoever_sent_them(start, agents, owner):
    experiment = start(DRAWN)
    given = drawn_models(experiment, agents)
    items = [(m.agent, m.digest, m.cid, m.lot, s[:32], s[32:]) for m, s in given]
    call = experiment.contract.encode("submit", items)
    experiment.contract.transact(owner, "multicall", [call])
    told = drawn_retrievals(experiment, agents)
    experiment.retrieve(told)
    assert experiment.signed(0) == [*given, *told]


def test_a_secret_that_was_not_chosen_before_is_passed_over(start, agents):
    experiment = start(DRAWN)
    experiment.submit(drawn_models(experiment, agents))
    changed = replace(drawn_retrievals(experiment, agents)[0][0], secret=b"\1" * 32)
    item = changed, sign(changed.encode(experiment.domain), agents[0])
    assert experiment.retrieve([item]) == [Rejection(0, Fault.WRONG_OPENING)]


def test_a_row_for_other_models_than_those_drawn_is_told(start, agents):
    experiment = start(DRAWN)
    experiment.submit(drawn_models(experiment, agents))
    experiment.retrieve(drawn_retrievals(experiment, agents))
    with pytest.raises(FormatError, match="agent 0 gives 4 scores"):
        experiment.score(openings())


def test_where_everybody_audits_everything_nothing_is_drawn(experiment, agents):
    until_reveal(experiment, agents)
    assert experiment.audits() == dict.fromkeys(EVERYBODY, range(4))
    assert experiment.history().rounds[0].audits == {}
