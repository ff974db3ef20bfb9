import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st

from flower_chain.errors import FormatError, Reverted
from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.data_trust import Task, TaskTerms
from flower_chain.ledger.embedded import EmbeddedLedger
from flower_chain.records import Commitment, Retrieval, Scores, TrainedModel, sign
from flower_chain.rules.blockflow import ONE
from flower_chain.rules.data_trust import (
    Judgement,
    Record,
    Rule,
    Weights,
    audits,
    judge,
    lot_of,
    pay,
    quality,
    rank,
    rewards,
    shares,
    smallest,
)

RULE = Rule(places=3, consistency=6553, tolerance=4000, floor=30_000, patience=2)
scores = st.integers(0, ONE)

# --- scores --------------------------------------------------------------------------------------


def test_a_score_is_the_weighted_mean_of_what_was_measured() -> None:
    assert Weights().score(1, 1, 1) == ONE
    assert Weights(2, 1, 1).score(1.0, 0.5, 0.0) == (2 * ONE + 32768) // 4
    assert Weights(1, 0, 0).score(0.25, 1, 1) == 16384


@pytest.mark.parametrize("wrong", [(0, 0, 0), (1, -1, 1)])
def test_weights_weigh(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(FormatError, match="none may be negative"):
        Weights(*wrong)


def test_what_is_measured_is_a_share() -> None:
    with pytest.raises(FormatError, match=r"in \[0, 1\]"):
        Weights().score(0.5, 1.1, 0.5)


# --- quality -------------------------------------------------------------------------------------


@given(scores, scores, scores)
def test_a_quality_is_between_median_and_one(median_: int, trail: int, weight: int) -> None:
    assert min(median_, ONE - trail) <= quality(median_, trail, weight) <= ONE
    assert quality(median_, trail, 0) == median_


@given(scores, scores, scores)
def test_to_be_better_than_before_costs_nothing(median_: int, trail: int, weight: int) -> None:
    if median_ < ONE:
        assert quality(median_ + 1, trail, weight) >= quality(median_, trail, weight)
    if median_ >= trail:
        assert quality(median_, trail, weight) == quality(median_, 0, weight)


def everybody_says(values: Mapping[int, int], workers: int) -> dict[int, list[int]]:
    """Rows in which all agree; those that are out get nothing."""
    return {a: [values.get(k, 0) for k in audits(workers)[a]] for a in values}


def test_the_trail_is_the_mean_of_trail_and_median() -> None:
    said = {0: 40_000, 1: 50_000, 2: 60_000}
    first = judge(everybody_says(said, 3), 3, {}, RULE)
    assert first.records == {k: Record(m, 0) for k, m in said.items()}
    second = judge(everybody_says(said | {0: 30_001}, 3), 3, first.records, RULE)
    assert second.records[0] == Record(35_000, 0)
    assert second.qualities[0] == (30_001 * (ONE - 6553) + (ONE - 9999) * 6553) // ONE


@given(st.integers(2, 9), st.data())
def test_medians_are_of_the_others_and_distances_of_what_one_said(
    workers: int, data: st.DataObject
) -> None:
    left = sorted(data.draw(st.sets(st.integers(0, workers - 1), min_size=2)))
    row = st.lists(scores, min_size=workers - 1, max_size=workers - 1)
    rows = {a: data.draw(row) for a in left}
    told = {a: dict(zip(audits(workers)[a], rows[a], strict=True)) for a in left}

    found = judge(rows, workers, {}, RULE)

    assert found.medians == {k: int(median(told[a][k] for a in left if a != k)) for k in left}
    far = [
        a for a in left if any(abs(told[a][k] - found.medians[k]) > 4000 for k in left if k != a)
    ]
    assert list(found.far) == far
    assert set(found.good) == set(left) - {*found.far, *found.poor}


def test_who_is_below_the_floor_for_too_long_is_poor() -> None:
    good, poor = {0: 60_000, 1: 60_000, 2: 60_000}, {0: 60_000, 1: 60_000, 2: 10}
    records: dict[int, Record] = {}
    out = []
    for said in (poor, good, poor, poor):
        found = judge(everybody_says(said, 3), 3, records, RULE)
        records = found.records
        out.append(found.poor)
    assert out == [(), (), (), (2,)]


def test_rows_must_be_of_all_others() -> None:
    with pytest.raises(FormatError, match="agent 1 gives 3 scores"):
        judge({0: [1, 2], 1: [1, 2, 3]}, 3, {}, RULE)


@given(st.integers(0, 4), st.data())
def test_no_minority_costs_an_honest_worker_its_deposit(
    colluders: int, data: st.DataObject
) -> None:
    """Of 2 M + 2 or more, M say anything; the others agree up to the tolerance."""
    workers = 2 * colluders + 2 + data.draw(st.integers(0, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    base = rng.integers(RULE.floor + 4000, ONE - RULE.tolerance, workers)
    lies = rng.integers(0, ONE, (workers, workers), endpoint=True)
    truth = base + rng.integers(0, RULE.tolerance, (workers, workers), endpoint=True)
    truth[:colluders] = lies[:colluders]
    rows = {a: [int(truth[a, k]) for k in audits(workers)[a]] for a in range(workers)}

    found = judge(rows, workers, {}, replace(RULE, patience=1))

    assert {*range(colluders, workers)} <= set(found.good)


# --- ranks and rewards ---------------------------------------------------------------------------


def test_the_best_are_ranked_and_salts_decide_between_equals() -> None:
    found = {0: 7, 1: 9, 2: 7, 3: 8}
    assert rank(found, bytes(32), 2) == [1, 3]
    orders = {tuple(rank(found, bytes([b]) * 32, 9)) for b in range(9)}
    assert orders == {(1, 3, 0, 2), (1, 3, 2, 0)}
    assert lot_of([b"\1" * 32, b"\2" * 32]) != lot_of([b"\2" * 32, b"\1" * 32])


@given(st.integers(2, 255), st.integers(0, 2**96))
def test_shares_fall_and_sum_to_the_reward(places: int, more: int) -> None:
    reward = smallest(places) + more
    first, *others = shares(reward, places)
    assert first == (reward + 1) // 2
    assert first + sum(others) == reward
    assert all(one > next_ for one, next_ in zip(others, [*others[1:], 0], strict=True))


@given(st.integers(2, 255))
def test_a_smaller_reward_has_no_shares_that_fall(places: int) -> None:
    *_, last = others = shares(smallest(places) - 1, places)[1:]
    assert last == 0 or len(set(others)) < len(others)


def test_the_other_half_of_a_single_place_is_nobodys() -> None:
    assert shares(101, 1) == [51]


@given(st.integers(0, 2**96), st.integers(1, 50))
def test_the_rewards_of_all_rounds_are_the_reward(reward: int, rounds: int) -> None:
    parts = rewards(reward, rounds)
    assert sum(parts) == reward
    assert min(parts) == reward // rounds
    assert max(parts) - min(parts) <= 1


@given(st.integers(6, 2**96), st.integers(0, 2**96), st.permutations(range(5)))
def test_what_is_lost_is_shared_by_what_is_earned(reward: int, lost: int, order: list[int]) -> None:
    paid = pay(order[:3], reward, range(5), lost)
    earned = dict(zip(order, shares(reward, 3), strict=False))
    assert sum(paid.values()) == reward + lost
    for worker, amount in paid.items():
        assert abs(amount - earned.get(worker, 0) - lost * earned.get(worker, 0) / reward) <= max(
            1, lost / 2**50
        )


def test_what_is_lost_in_a_round_without_scores_is_shared_equally() -> None:
    assert pay([], 1000, [0, 2, 5], 31) == {0: 10, 2: 10, 5: 11}


# --- the same rules in Solidity ------------------------------------------------------------------

OWNER: LocalAccount = Account.from_key(b"\x01" * 32)
DEPOSIT, REWARD, ROUNDS = 10**6 + 7, 10**7 + 1, 6


class Trial:
    """A task whose workers do what they must, relayed by its requester."""

    def __init__(self, path: Path, n: int, rule: Rule) -> None:
        keys = [Account.from_key((2 + i).to_bytes(32, "big")) for i in range(n)]
        self.workers: list[LocalAccount] = sorted(keys, key=lambda key: int(key.address, 16))
        self.ledger = EmbeddedLedger(path / "journal", [OWNER.address])
        self.token = token = self.ledger.deploy(OWNER, "RewardToken", 10**30)
        seconds = (86400, 86400, 86400, 60, 86400, 60)
        terms = TaskTerms(
            bytes(32), b"m" * 32, b"c" * 36, ROUNDS, n, DEPOSIT, REWARD, rule, seconds
        )
        accounts = [worker.address for worker in self.workers]
        self.task = Task.create(self.ledger, OWNER, token.address, terms, accounts)
        token.transact(OWNER, "transfer", self.task.contract.address, REWARD)
        for account in accounts:
            token.transact(OWNER, "transfer", account, DEPOSIT)
        self.task.join([self.task.permit(token, worker, 2**63) for worker in self.workers])

    def until_scores(self, committing: Sequence[int]) -> None:
        """All train and retrieve; those of `committing` will commit."""
        live, number = self.task.progress.live, self.task.progress.round
        models = [TrainedModel(k, number, b"1" * 32, b"2" * 36) for k in live]
        assert self.task.submit([(m, self._signature(m)) for m in models]) == []
        found = [Retrieval(k, number, live) for k in live]
        assert self.task.retrieve([(r, self._signature(r)) for r in found]) == []
        assert set(committing) <= set(live)

    def score(self, rows: Mapping[int, Sequence[int]], salts: Mapping[int, bytes]) -> None:
        """The workers of `rows` commit and reveal; the others are late."""
        number, domain = self.task.progress.round, self.task.domain
        openings = [Scores(k, number, tuple(row), salts[k]) for k, row in sorted(rows.items())]
        said = [Commitment(o.agent, number, o.commitment(domain)) for o in openings]
        assert self.task.commit([(c, self._signature(c)) for c in said]) == []
        self.wait(Stage.COMMIT)
        self.task.score(openings)

    def wait(self, stage: Stage) -> None:
        """Until `stage` is over for those that have not acted."""
        progress = self.task.progress
        if progress.stage is not stage:
            return
        sent = (self.token.transact(OWNER, "transfer", OWNER.address, 0).block for _ in count())
        next(b for b in sent if self.ledger.time_of(b) >= progress.deadline)  # a second each
        self.task.advance()

    def _signature(self, said: Any) -> bytes:
        return sign(said.encode(self.task.domain), self.workers[said.agent])


def play(trial: Trial, rng: np.random.Generator, n: int, rule: Rule, spread: int) -> None:
    """A whole task in Solidity and in Python."""
    records: Mapping[int, Record] = {}
    reward = iter(rewards(REWARD, ROUNDS))
    for number in range(ROUNDS):
        if trial.task.progress.stage is Stage.FINISHED:
            break
        before = trial.task.progress.live
        late = before[-1:] if number == 1 and len(before) > 2 else ()
        rows = {
            a: rng.integers(20_000, 20_000 + spread, n - 1).tolist()
            for a in before
            if a not in late
        }
        salts = {a: secrets.token_bytes(32) for a in rows}
        trial.until_scores(list(rows))
        trial.score(rows, salts)

        judged = judge(rows, n, records, rule)
        records = judged.records
        history = trial.task.history()
        verdict, found = history.verdicts[number], history.rounds[number]
        assert (verdict.medians, verdict.qualities) == (judged.medians, judged.qualities)
        assert (verdict.far, verdict.poor) == (judged.far, judged.poor)
        check_payment(
            judged, found.refunded, verdict.earned, salts, next(reward), number, rule, late
        )
        live = judged.good if judged.good else tuple(rows)
        assert trial.task.progress.live == live
    total = dict.fromkeys(range(n), 0)
    for each in trial.task.history().rounds:
        for worker, amount in each.refunded.items():
            total[worker] += amount
    assert [trial.task.contract.call("agents", k)[1] for k in range(n)] == [*total.values()]


def check_payment(
    judged: Judgement,
    refunded: Mapping[int, int],
    earned: Mapping[int, int],
    salts: Mapping[int, bytes],
    reward: int,
    number: int,
    rule: Rule,
    late: Sequence[int],
) -> None:
    """What Python says of a round is what the contract paid."""
    if not judged.good:
        assert earned == {}
        return
    qualities = {k: judged.qualities[k] for k in judged.good}
    ranking = rank(qualities, lot_of(salts[k] for k in sorted(salts)), rule.places)
    assert earned == dict(zip(ranking, shares(reward, len(ranking)), strict=True))
    assert list(earned) == ranking
    lost = DEPOSIT * (len(judged.qualities) - len(judged.good) + len(late))
    expected = pay(ranking, reward, judged.good, lost)
    over = number == ROUNDS - 1 or len(judged.good) < 2
    assert refunded == {k: amount + DEPOSIT * over for k, amount in expected.items()}


@pytest.mark.parametrize(
    ("n", "spread", "floor"),
    [
        (2, 40_000, 0),
        (3, 9000, 37_000),  # ends with one left
        (5, 8500, 36_500),  # two are too far at once, then one is too poor
        (6, 8500, 36_000),
        (9, 2, 0),  # all but equal
        (17, 4000, 35_200),  # six are too poor at once
    ],
)
def test_the_contract_judges_and_pays_as_python_does(
    n: int, spread: int, floor: int, tmp_path: Path
) -> None:
    rule = Rule(places=4, consistency=20_000, tolerance=4000, floor=floor, patience=2)
    trial = Trial(tmp_path, n, rule)
    play(trial, np.random.default_rng(n), n, rule, spread)
    trial.ledger.close()


def test_a_reward_that_has_no_shares_that_fall_is_refused(tmp_path: Path) -> None:
    rule = replace(RULE, places=200)
    least = ROUNDS * smallest(200)
    ledger = EmbeddedLedger(tmp_path / "journal", [OWNER.address])
    token = ledger.deploy(OWNER, "RewardToken", 10**30)
    seconds = (1, 1, 1, 1, 1, 1)
    accounts = [Account.create().address for _ in range(2)]
    terms = TaskTerms(bytes(32), bytes(32), bytes(36), ROUNDS, 2, 1, least, rule, seconds)
    assert Task.create(ledger, OWNER, token.address, terms, accounts)
    with pytest.raises(Reverted, match="BadTerms"):
        Task.create(ledger, OWNER, token.address, replace(terms, reward=least - 1), accounts)
    ledger.close()
