"""DataTrust's contract through the package's words, on both ledgers."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from eth_account.signers.local import LocalAccount

from flower_chain.errors import FormatError, Reverted
from flower_chain.ledger import Contract, Ledger
from flower_chain.ledger.blockflow import Fault, Rejection, Stage
from flower_chain.ledger.data_trust import Task, TaskTerms
from flower_chain.records import Commitment, Leave, Retrieval, Scores, TrainedModel, recover, sign
from flower_chain.rules.data_trust import Record, Rule, audits, judge, lot_of, pay, rank, rewards

DEPOSIT, REWARD, ROUNDS = 1000, 10**6, 3
RULE = Rule(places=3, consistency=6553, tolerance=4000, floor=30_000, patience=2)
CID = bytes.fromhex("01551220") + b"\xcd" * 32
HOURS = (3600, 3600, 3600, 3600, 3600, 3600)
TERMS = TaskTerms(b"\7" * 32, b"\3" * 32, CID, ROUNDS, 4, DEPOSIT, REWARD, RULE, HOURS)
FOREVER = 2**63
SALTS = {k: bytes([k]) * 32 for k in range(4)}


@pytest.fixture
def workers(devices: list[LocalAccount]) -> list[LocalAccount]:
    """Four, by number."""
    return sorted(devices[:4], key=lambda account: account.address.lower())


@pytest.fixture
def token(ledger: Ledger, owner: LocalAccount, workers: list[LocalAccount]) -> Contract:
    """Enough for a deposit with each worker."""
    token = ledger.deploy(owner, "RewardToken", 10**9)
    for worker in workers:
        token.transact(owner, "transfer", worker.address, DEPOSIT)
    return token


@pytest.fixture
def create(
    ledger: Ledger, owner: LocalAccount, workers: list[LocalAccount], token: Contract
) -> Callable[[], Task]:
    """Makes a task that nobody has joined."""
    accounts = [worker.address for worker in reversed(workers)]
    return lambda: Task.create(ledger, owner, token.address, TERMS, accounts)


@pytest.fixture
def task(
    create: Callable[[], Task], owner: LocalAccount, workers: list[LocalAccount], token: Contract
) -> Task:
    """One that is paid for, and that all have joined."""
    task = create()
    token.transact(owner, "transfer", task.contract.address, REWARD)
    assert task.join([task.permit(token, worker, FOREVER) for worker in workers]) == []
    return task


def rows(qualities: Mapping[int, int]) -> dict[int, list[int]]:
    """All agree how good each worker is."""
    return {a: [qualities.get(k, 0) for k in audits(4)[a]] for a in qualities}


def play(task: Task, workers: list[LocalAccount], said: Mapping[int, list[int]]) -> None:
    """A round in which everybody does everything."""
    number, domain, live = task.progress.round, task.domain, task.progress.live
    models = [TrainedModel(k, number, bytes([k]) * 32, CID) for k in live]
    assert task.submit([(m, sign(m.encode(domain), workers[m.agent])) for m in models]) == []
    found = [Retrieval(k, number, live) for k in live]
    assert task.retrieve([(r, sign(r.encode(domain), workers[r.agent])) for r in found]) == []
    openings = [Scores(k, number, tuple(said[k]), SALTS[k]) for k in live]
    hashes = [Commitment(o.agent, number, o.commitment(domain)) for o in openings]
    assert task.commit([(c, sign(c.encode(domain), workers[c.agent])) for c in hashes]) == []
    task.score(openings)


def leaves(
    task: Task, workers: list[LocalAccount], agents: tuple[int, ...]
) -> list[tuple[Leave, bytes]]:
    """These say that they leave."""
    said = [Leave(k, task.progress.round) for k in agents]
    return [(leave, sign(leave.encode(task.domain), workers[leave.agent])) for leave in said]


def test_nobody_joins_before_the_reward_is_there(create, token, owner, workers):
    task = create()
    token.transact(owner, "transfer", task.contract.address, REWARD - 7)
    with pytest.raises(Reverted, match=r"NotFunded\(7\)"):
        task.join([task.permit(token, workers[0], FOREVER)])


def test_a_round_is_judged_and_paid_as_the_rule_says(task, workers):
    said = rows({0: 40_000, 1: 60_000, 2: 50_000, 3: 45_000})
    said[3][0] += 9000  # of the first worker, whom two others score
    play(task, workers, said)
    history = task.history()
    (verdict,), first = history.verdicts.values(), history.rounds[0]
    judged = judge(said, 4, {}, RULE)
    ranking = rank({k: judged.qualities[k] for k in (0, 1, 2)}, lot_of(SALTS.values()), 3)
    reward = rewards(REWARD, ROUNDS)[0]
    assert (verdict.medians, verdict.qualities) == (judged.medians, judged.qualities)
    assert (verdict.far, verdict.poor) == (judged.far, judged.poor) == ((3,), ())
    assert list(verdict.earned) == ranking == [1, 2, 0]
    assert first.refunded == pay(ranking, reward, (0, 1, 2), DEPOSIT)
    assert first.eliminated == {3: Stage.SCORE}
    assert first.left == task.progress.live == (0, 1, 2)


def test_a_whole_task_pays_out_all_there_is(task, workers, token, owner):
    qualities = {0: 40_000, 1: 60_000, 2: 50_000, 3: 100}
    records: dict[int, Record] = {}
    for _ in range(ROUNDS):
        play(task, workers, rows(qualities))
        judged = judge(rows(qualities), 4, records, RULE)
        records = judged.records
        qualities = {k: qualities[k] for k in judged.good}
    history = task.history()
    assert history.stage is Stage.FINISHED
    assert [verdict.poor for verdict in history.verdicts.values()] == [(), (3,), ()]
    task.claim(range(4))
    task.sweep()
    credits = [task.contract.call("credits", worker) for worker in task.agents]
    assert credits[3] == 0
    assert sum(credits) == REWARD + 4 * DEPOSIT
    assert task.contract.call("held") == 0


def test_the_first_model_is_announced(task):
    history = task.history()
    assert history.announced == {0: {TERMS.model: CID}}
    assert history.joined == [0, 1, 2, 3]
    assert history.verdicts == {}


def test_workers_leave_when_the_round_is_over(task, workers):
    assert task.depart(leaves(task, workers, (2,))) == []
    forged = leaves(task, workers, (1,))[0][1]
    assert task.depart([*leaves(task, workers, (2,)), (Leave(0, 0), forged)]) == [
        Rejection(2, Fault.SECOND_TIME),
        Rejection(0, Fault.BAD_SIGNATURE),
    ]
    assert task.progress.live == (0, 1, 2, 3)
    play(task, workers, rows({0: 40_000, 1: 60_000, 2: 50_000, 3: 45_000}))
    history = task.history()
    assert history.verdicts[0].leaving == [2]
    assert history.verdicts[0].left == (2,)
    assert history.rounds[0].refunded[2] == DEPOSIT + history.verdicts[0].earned[2]
    assert task.progress.live == (0, 1, 3)
    logs = task.contract.ledger.logs(task.contract.address)
    assert set(history.rounds[0].receipts) == {log["transactionHash"].to_0x_hex() for log in logs}


def test_leaving_is_signed_for_a_round(task, workers):
    leave, signature = leaves(task, workers, (1,))[0]
    assert recover(leave.encode(task.domain), signature) == workers[1].address
    assert recover(replace(leave, round=1).encode(task.domain), signature) != workers[1].address


def test_nobody_leaves_before_it_began(create, workers):
    task = create()
    with pytest.raises(Reverted, match="WrongStage"):
        task.depart(leaves(task, workers, (1,)))


def test_a_worker_comes_once(ledger, owner, token, workers):
    twice = [workers[0].address, workers[0].address.lower()]
    with pytest.raises(FormatError, match="2 agents, 1 of them different"):
        Task.create(ledger, owner, token.address, TERMS, twice)
