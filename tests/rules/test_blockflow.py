import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count, product
from pathlib import Path
from random import Random
from statistics import median
from typing import TypeVar

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_chain.errors import FormatError
from flower_chain.ledger.blockflow import Experiment, Stage, Terms
from flower_chain.ledger.embedded import EmbeddedLedger
from flower_chain.records import Commitment, Retrieval, Scores, TrainedModel, lot_of, sign
from flower_chain.rules.blockflow import (
    MAX_AGENTS,
    ONE,
    Overall,
    draw,
    exact_scores,
    middles,
    refunds,
    retrieval_survivors,
    score,
    seed_of,
    table,
    to_score,
    trust,
)

Matrix = NDArray[np.uint16]
Said = TypeVar("Said", TrainedModel, Retrieval, Commitment)

value = st.integers(0, ONE) | st.sampled_from([0, 1, ONE // 2, ONE // 2 + 1, ONE - 1, ONE])


@st.composite
def matrices(choose: st.DrawFn, most: int = 9, least: int = 1) -> Matrix:
    """Scores of every agent for every model: any, or close to each other as honest ones are."""
    n = choose(st.integers(least, most))
    if choose(st.booleans()):
        cells = choose(st.lists(value, min_size=n * n, max_size=n * n))
        return np.array(cells, np.uint16).reshape(n, n)
    rng = np.random.default_rng(choose(st.integers(0, 2**32)))
    quality = rng.uniform(0.3, 0.95, n)
    noise = rng.normal(0, choose(st.sampled_from([0.001, 0.05, 0.3])), (n, n))
    return np.rint(np.clip(quality + noise, 0, 1) * ONE).astype(np.uint16)


# --- algorithm 1 ---------------------------------------------------------------------------------


def algorithm_1(s: list[list[int]], audits: Mapping[int, Sequence[int]]) -> Overall:
    """As the paper writes it, in exact fractions, each division rounded down."""
    agents = range(len(s))
    m, d = [0 for _ in agents], [ONE for _ in agents]
    for k in agents:
        auditors = [a for a in agents if k in audits[a]]
        if not auditors:
            continue
        m[k] = int(Fraction(median([Fraction(s[a][k]) for a in auditors])))
        for a in auditors:
            t, half = abs(s[a][k] - m[k]), Fraction(ONE, 2)
            d[a] = min(d[a], max(0, int(ONE * (half - t) // (half + t))))
    ms = [m[k] * ONE // max(m) if max(m) else 0 for k in agents]
    ds = [d[a] * ONE // max(d) if max(d) else 0 for a in agents]
    return Overall(tuple(m), tuple(d), tuple(min(ms[k], ds[k]) for k in agents))


@given(matrices())
def test_algorithm_1_line_by_line(scores: Matrix) -> None:
    agents = range(len(scores))

    assert score(scores) == algorithm_1(scores.tolist(), dict.fromkeys(agents, agents))


@given(matrices())
def test_integers_are_close_to_the_exact_scores(scores: Matrix) -> None:
    found = score(scores)
    # Scaling up by more than a hundred shows the rounding.
    assume(max(found.model) > ONE // 100 and max(found.evaluation) > ONE // 100)

    np.testing.assert_allclose(
        np.array(found.overall) / ONE, exact_scores(scores / ONE), atol=500 / ONE
    )


@given(matrices())
def test_overall_scores_are_shares_and_all_zero_if_all_medians_are(scores: Matrix) -> None:
    found = score(scores)

    assert all(0 <= p <= ONE for p in found.overall)
    assert any(found.model) or not any(found.overall)
    assert any(found.evaluation) or not any(found.overall)


@given(matrices(), st.integers(0, 2**32))
def test_the_order_of_the_agents_does_not_matter(scores: Matrix, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(scores))

    shuffled = score(scores[np.ix_(order, order)])

    assert shuffled.overall == tuple(np.array(score(scores).overall)[order])


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two_rounded_down() -> None:
    scores = np.array([[10, 0, 0, 0], [20, 0, 0, 0], [23, 0, 0, 0], [40, 0, 0, 0]])

    assert [column[0] for column in middles(scores)] == [20, 23]
    assert score(scores).model[0] == 21


def test_medians_are_scaled_by_the_largest_median() -> None:
    scores = np.array([[20_000, 10_000]] * 2)

    assert score(scores).overall == (ONE, ONE // 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_all_medians_zero_is_no_score_for_anybody(n: int) -> None:
    assert score(np.zeros((n, n), np.uint16)).overall == (0,) * n


def test_everybody_half_a_point_away_from_some_median_is_no_score_for_anybody() -> None:
    scores = ONE - ONE * np.eye(3, dtype=int)  # medians of one, and everyone gives somebody zero

    assert score(scores).evaluation == (0, 0, 0)
    assert score(scores).overall == (0, 0, 0)


@given(st.integers(1, ONE))
def test_a_single_agent_scores_one(own: int) -> None:
    assert score(np.array([[own]])).overall == (ONE,)


def test_no_agents_no_scores() -> None:
    assert score(np.zeros((0, 0), np.uint16)) == Overall((), (), ())
    assert refunds(0, ()) == []


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(0, ONE), (ONE // 4, 21846), (ONE // 2, 0), (ONE // 2 + 1, 0), (ONE, 0)],
)
def test_trust(distance: int, expected: int) -> None:
    assert trust(distance) == expected


@given(st.integers(0, ONE - 1))
def test_trust_falls_with_the_distance(distance: int) -> None:
    assert trust(distance) >= trust(distance + 1)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.zeros((2, 3), int), r"shape \(2, 3\)"),
        (np.zeros(3, int), r"shape \(3,\)"),
        (np.full((2, 2), 0.5), "float64"),
        (np.full((2, 2), ONE + 1), "to 65536"),
        (np.full((2, 2), -1), "from -1"),
    ],
)
def test_what_is_not_a_matrix_of_scores_is_refused(scores: Matrix, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        score(scores)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, ONE), (0.5, 32768), (0.1, 6554)])
def test_scores_are_rounded_half_up(share: float, expected: int) -> None:
    assert to_score(share) == expected


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_score_is_a_share(wrong: float) -> None:
    with pytest.raises(FormatError, match=r"in \[0, 1\]"):
        to_score(wrong)


# --- drawn auditors ------------------------------------------------------------------------------

secrets_told = st.lists(st.binary(min_size=32, max_size=32), max_size=9)


@given(secrets_told, st.randoms())
def test_the_order_of_the_secrets_does_not_matter(told: list[bytes], random: Random) -> None:
    shuffled = random.sample(told, len(told))

    assert seed_of(told) == seed_of(shuffled)
    assert len(seed_of(told)) == 32


@given(secrets_told, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_each_secret_changes_the_seed(told: list[bytes], one: bytes, other: bytes) -> None:
    assert (seed_of([*told, one]) == seed_of([*told, other])) == (one == other)


@given(
    st.binary(min_size=32, max_size=32),
    st.sets(st.integers(0, MAX_AGENTS - 1), min_size=1),
    st.integers(1, 255),
)
def test_every_agent_audits_and_is_audited_by_as_many_others(
    seed: bytes, agents: set[int], auditors: int
) -> None:
    audits = draw(seed, sorted(agents), auditors)
    reach = min(auditors, len(agents) - 1)

    assert set(audits) == agents
    assert all(len(set(models)) == len(models) == reach for models in audits.values())
    assert all(agent not in models for agent, models in audits.items())
    counts = Counter(model for models in audits.values() for model in models)
    assert all(counts[agent] == reach for agent in agents)


def test_every_set_of_auditors_is_as_likely() -> None:
    """Those of one model, in 20,000 draws: chi squared with nine degrees of freedom."""
    counts: Counter[tuple[int, ...]] = Counter()
    for number in range(20_000):
        audits = draw(number.to_bytes(32, "big"), range(6), 3)
        counts[tuple(a for a in range(6) if 2 in audits[a])] += 1

    assert len(counts) == 10
    assert sum((count - 2000) ** 2 / 2000 for count in counts.values()) < 27.9  # p = 0.001


def test_nobody_draws_nobody() -> None:
    assert draw(bytes(32), [], 3) == {}
    assert draw(bytes(32), [7], 3) == {7: []}


@given(matrices(), st.integers(1, 9), st.binary(min_size=32, max_size=32))
def test_algorithm_1_over_the_auditors_that_are_left(
    scores: Matrix, auditors: int, seed: bytes
) -> None:
    audits = draw(seed, range(2 * len(scores)), auditors)
    left = {2 * place: place for place in range(len(scores))}
    s = scores.tolist()
    rows = {
        agent: [s[place][left[k]] if k in left else 7 for k in audits[agent]]
        for agent, place in left.items()
    }
    there = {place: [left[k] for k in audits[a] if k in left] for a, place in left.items()}

    assert score(*table(rows, audits)) == algorithm_1(s, there)


@given(matrices(), st.integers(1, 9))
def test_drawing_all_others_leaves_out_only_the_diagonal(scores: Matrix, more: int) -> None:
    n = len(scores)
    audits = draw(bytes(32), range(n), n - 2 + more)
    rows = {a: [int(scores[a, k]) for k in audits[a]] for a in range(n)}

    given_scores, audited = table(rows, audits)

    assert np.array_equal(audited, ~np.eye(n, dtype=bool))
    assert np.array_equal(given_scores[audited], scores[audited])


def test_a_model_that_nobody_is_left_to_audit_is_worth_nothing() -> None:
    circle = {0: [1], 1: [2], 2: [0]}

    found = score(*table({0: [100], 1: [200]}, circle))

    assert found == Overall((0, 100), (ONE, ONE), (0, ONE))


def test_a_single_agent_that_is_left_is_not_scored() -> None:
    assert score(*table({4: [9]}, {4: [5], 5: [4]})).overall == (0,)


def test_rows_must_be_as_long_as_the_draw_says() -> None:
    with pytest.raises(FormatError, match="agent 1 gives 2 scores"):
        table({1: [5, 6]}, {1: [2], 2: [1]})
    with pytest.raises(FormatError, match="agent 3 gives 1 scores"):
        table({3: [5]}, {1: [2], 2: [1]})


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(3, 15))
def test_a_minority_of_the_auditors_moves_no_median(seed: int, auditors: int, n: int) -> None:
    """And neither does who audits no model: only where half of the auditors collude it may."""
    rng = np.random.default_rng(seed)
    colluders = range(n // 2)
    audits = draw(rng.bytes(32), range(n), auditors)
    honest = {a: rng.integers(40_000, 60_000, len(audits[a])).tolist() for a in range(n)}
    lies = {a: [ONE if k in colluders else 0 for k in audits[a]] for a in colluders}

    found = score(*table(honest | lies, audits))

    for model in range(n):
        chosen = [a for a in range(n) if model in audits[a]]
        said = [honest[a][audits[a].index(model)] for a in chosen if a not in colluders]
        if 2 * (len(chosen) - len(said)) < len(chosen):
            assert min(said) <= found.model[model] <= max(said)


# --- collusion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "colluders"), [(n, m) for n in range(3, 12) for m in range((n + 1) // 2)]
)
@given(seed=st.integers(0, 2**32))
def test_no_minority_moves_a_median_out_of_the_honest_range(
    n: int, colluders: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.rint(np.clip(rng.normal(0.8, 0.03, (n, n)), 0, 1) * ONE).astype(int)
    honest = scores[colluders:]
    scores[:colluders, :colluders] = ONE
    scores[:colluders, colluders:] = 0

    found = score(scores)

    assert all(
        low <= m <= high
        for low, m, high in zip(honest.min(0), found.model, honest.max(0), strict=True)
    )
    assert all(p == 0 for p in found.overall[:colluders])
    assert all(p > 0 for p in found.overall[colluders:])


# --- refunds -------------------------------------------------------------------------------------

pots = st.integers(0, 2**96 - 1)


@given(pots, st.lists(value, min_size=1, max_size=20))
def test_refunds_sum_to_the_pot_and_are_within_one_unit_of_the_exact_share(
    pot: int, overall: list[int]
) -> None:
    parts = refunds(pot, overall)
    weights = overall if any(overall) else [1] * len(overall)

    assert sum(parts) == pot
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(pot * weight, sum(weights))) < 1
        assert part >= 0


@given(pots, st.integers(1, 20))
def test_a_pot_that_nobody_earned_is_shared_equally(pot: int, n: int) -> None:
    parts = refunds(pot, [0] * n)

    assert sum(parts) == pot
    assert max(parts) - min(parts) <= 1


# --- retrieval -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "colluders"), [(n, m) for n in range(1, 12) for m in range((n + 1) // 2)]
)
def test_honest_agents_are_enough_for_each_other(n: int, colluders: int) -> None:
    honest = range(colluders, n)
    for withheld, lying in product((True, False), repeat=2):
        seen = honest if withheld else range(n)
        retrieved = [range(colluders) if lying else None] * colluders + [seen] * len(honest)

        assert set(honest) <= set(retrieval_survivors(retrieved))


def test_an_agent_whose_model_half_retrieved_is_eliminated() -> None:
    retrieved = [{0, 1, 2, 3}, {0, 1, 2, 3}, {1, 2, 3}, {1, 2}]

    assert retrieval_survivors(retrieved) == [1, 2, 3]


def test_an_agent_that_retrieved_half_or_reports_nothing_is_eliminated() -> None:
    assert retrieval_survivors([range(4), range(4), {3}, range(4)]) == [0, 1, 3]
    assert retrieval_survivors([range(3), range(3), None]) == [0, 1]


def test_own_models_count_and_unknown_ones_do_not() -> None:
    assert retrieval_survivors([{1}, {0}]) == [0, 1]
    assert retrieval_survivors([{7, -1}, {0}]) == []
    assert retrieval_survivors([]) == []


# --- the same rules in Solidity ------------------------------------------------------------------

BOND = 10**6
STAKE = 1009
OWNER: LocalAccount = Account.from_key(b"\x01" * 32)


class Trial:
    """An experiment whose agents do what they must, relayed by its owner."""

    def __init__(self, path: Path, n: int, auditors: int = 0) -> None:
        keys = [Account.from_key((2 + i).to_bytes(32, "big")) for i in range(n)]
        self.agents: list[LocalAccount] = sorted(keys, key=lambda key: int(key.address, 16))
        self.ledger = EmbeddedLedger(path / "journal", [OWNER.address])
        token = self._token = self.ledger.deploy(OWNER, "RewardToken", 10**30)
        seconds = (86400, 86400, 86400, 60, 86400, 86400)
        terms = Terms(bytes(32), BOND // STAKE, n, BOND, STAKE, seconds, auditors)
        self._auditors = auditors
        accounts = [agent.address for agent in self.agents]
        self.flow = Experiment.deploy(self.ledger, OWNER, token.address, terms, accounts)
        for account in accounts:
            token.transact(OWNER, "transfer", account, BOND)
        self.flow.join([self.flow.permit(token, agent, 2**63) for agent in self.agents])

    def submit(self) -> None:
        """All contribute."""
        models = [TrainedModel(i, self._round, b"1" * 32, b"2" * 36) for i in self._live]
        self._secrets = dict.fromkeys(self._live, bytes(32))
        if self._auditors:
            self._secrets = {i: secrets.token_bytes(32) for i in self._live}
            models = [
                replace(m, lot=lot_of(m.agent, m.round, self._secrets[m.agent], self.flow.domain))
                for m in models
            ]
        assert self.flow.submit([self._signed(model) for model in models]) == []

    def retrieve(self, retrieved: Sequence[Sequence[int]]) -> None:
        """All report whose models they have."""
        found = [
            Retrieval(i, self._round, tuple(retrieved[i]), self._secrets[i]) for i in self._live
        ]
        assert self.flow.retrieve([self._signed(each) for each in found]) == []

    def audit(
        self, scores: Matrix, audits: Mapping[int, Sequence[int]], left: Sequence[int]
    ) -> tuple[int, ...]:
        """Those that are left commit, and reveal; the overall scores."""
        openings = [
            Scores(i, self._round, tuple(scores[i, audits[i]].tolist()), secrets.token_bytes(32))
            for i in left
        ]
        hashes = [opening.commitment(self.flow.domain) for opening in openings]
        said = [Commitment(o.agent, self._round, h) for o, h in zip(openings, hashes, strict=True)]
        assert self.flow.commit([self._signed(commitment) for commitment in said]) == []
        self._pass(Stage.COMMIT)
        receipt = self.flow.score(openings)
        (scored,) = (e for e in self.flow.contract.events_in(receipt) if e.name == "Scored")
        return tuple(scored.args["overall"])

    def refunds(self) -> list[int]:
        """What every agent can claim."""
        return [self.flow.contract.call("agents", i)[1] for i in range(len(self.agents))]

    def drawn(self) -> dict[int, list[int]]:
        """Who audits whom, by what the agents told."""
        return draw(seed_of(self._secrets.values()), self._live, self._auditors)

    def _pass(self, stage: Stage) -> None:
        """Wait until a stage is over for those that have not acted."""
        progress = self.flow.progress
        if progress.stage is not stage:
            return
        blocks = (self._token.transact(OWNER, "transfer", OWNER.address, 0).block for _ in count())
        next(b for b in blocks if self.ledger.time_of(b) >= progress.deadline)  # a second each
        self.flow.advance()

    @property
    def _round(self) -> int:
        return self.flow.progress.round

    @property
    def _live(self) -> tuple[int, ...]:
        return self.flow.progress.live

    def _signed(self, said: Said) -> tuple[Said, bytes]:
        return said, sign(said.encode(self.flow.domain), self.agents[said.agent])


def play(experiment: Trial, scores: Matrix) -> None:
    """A round, in Solidity and in Python."""
    n = len(scores)
    expected = score(scores).overall
    before = experiment.refunds()
    experiment.submit()
    experiment.retrieve([range(n)] * n)

    assert experiment.audit(scores, dict.fromkeys(range(n), range(n)), range(n)) == expected
    gained = [after - start for after, start in zip(experiment.refunds(), before, strict=True)]
    assert gained == refunds(STAKE * n, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 17])
def test_the_contract_scores_as_python_does(n: int, tmp_path: Path) -> None:
    experiment = Trial(tmp_path, n)

    @settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
    @given(matrices(most=n, least=n))
    def check(scores: Matrix) -> None:
        play(experiment, scores)

    check()
    experiment.ledger.close()


def test_the_contract_scores_a_hundred_agents_as_python_does(tmp_path: Path) -> None:
    experiment = Trial(tmp_path, 100)
    rng = np.random.default_rng(3)
    quality = rng.uniform(0.4, 0.9, 100)
    honest = np.clip(quality + rng.normal(0, 0.05, (100, 100)), 0, 1)

    play(experiment, np.rint(honest * ONE).astype(np.uint16))
    play(experiment, rng.integers(0, ONE, (100, 100), np.uint16, endpoint=True))
    experiment.ledger.close()


@pytest.mark.parametrize(("n", "auditors"), [(1, 3), (3, 1), (6, 2), (8, 7), (17, 4), (100, 15)])
def test_the_contract_draws_and_scores_as_python_does(
    n: int, auditors: int, tmp_path: Path
) -> None:
    """In every round but the first some of those that were drawn do not commit."""
    experiment = Trial(tmp_path, n, auditors)
    rng = np.random.default_rng(n)
    left = [*range(n)]
    for number in range(3):
        experiment.submit()
        experiment.retrieve([range(n)] * n)
        audits = experiment.drawn()
        if number:
            out = len(left) // 5 + (len(left) > 1)
            left = sorted(Random(n).sample(left, len(left) - out))
        scores = rng.integers(0, [ONE, 3000, 2][number], (n, n), np.uint16, endpoint=True)
        rows = {agent: scores[agent, audits[agent]].tolist() for agent in left}
        expected = score(*table(rows, audits)).overall

        assert experiment.audit(scores, audits, left) == expected
    experiment.ledger.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_contract_eliminates_whom_python_does(seed: int, tmp_path: Path) -> None:
    n = 3 + 2 * seed
    experiment = Trial(tmp_path, n)
    marks = np.random.default_rng(seed).random((n, n)) < 0.55
    experiment.submit()

    retrieved = [[int(k) for k in np.flatnonzero(row)] for row in marks]
    experiment.retrieve(retrieved)

    survivors = retrieval_survivors(retrieved)
    assert 0 < len(survivors) < n
    assert experiment.flow.progress.live == tuple(survivors)
    experiment.ledger.close()


def test_the_contract_has_the_same_constants(tmp_path: Path) -> None:
    experiment = Trial(tmp_path, 1)

    assert experiment.flow.contract.call("ONE") == ONE
    assert experiment.flow.contract.call("MAX_AGENTS") == MAX_AGENTS
    experiment.ledger.close()
