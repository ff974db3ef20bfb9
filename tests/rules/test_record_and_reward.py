import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_chain.errors import ConfigError, FormatError
from flower_chain.ledger.federation import Federation
from flower_chain.plan import (
    IN_THE_CLEAR,
    MAX_DATA_COST,
    MAX_RATE,
    WITHOUT_NOISE,
    RecordAndRewardPlan,
)
from flower_chain.records import PPM, UNMEASURED, Contribution, Refusal, Signed, sign
from flower_chain.rules.record_and_reward import (
    MAX_ERRORS,
    Rule,
    ends,
    error_rate,
    evidence,
    falls,
    gain_quality,
    is_well_formed,
    judge,
    misdirection,
    open_error,
    quality,
)
from flower_chain.run import Funds, RecordAndRewardRun
from flower_chain.updates import Arrays, Format

Table = NDArray[np.float64]
Labels = NDArray[np.int64]

N_CLASSES = 5
PUBLISHED = (Rule.TREND, Rule.THRESHOLD, Rule.BOTH, Rule.EITHER)


@dataclass(frozen=True)
class Terms:
    rule: Rule = Rule.GAIN
    threshold_ppm: int = 100_000
    gain_ppm: int = 30_000
    clear_ppm: int = 120_000
    harm_ppm: int = 720_000
    least_ppm: int = 100_000
    rate: int = PPM
    max_data_cost: int = 1000


def contribution(errors: Sequence[int], data_cost: int = 100) -> Contribution:
    return Contribution("0x" + 40 * "1", 0, data_cost, b"1" * 32, b"2" * 36, (), tuple(errors))


error = st.integers(0, PPM)
some_errors = st.lists(error, min_size=2, max_size=12)
share = st.integers(0, PPM)


@st.composite
def samples(draw: st.DrawFn, least: int = 1) -> tuple[Table, Labels]:
    """Class probabilities of as many samples of each of some classes."""
    classes = draw(st.sets(st.integers(0, N_CLASSES - 1), min_size=least))
    each = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = np.repeat(sorted(classes), each)
    sharpness = draw(st.sampled_from([0.1, 1.0, 5.0, 20.0]))
    table = np.exp(sharpness * rng.normal(size=(len(labels), N_CLASSES)))
    return table / table.sum(axis=1, keepdims=True), labels


# --- the published rules -------------------------------------------------------------------------


@given(some_errors)
def test_falls_as_the_exact_line_of_best_fit_does(errors: list[int]) -> None:
    n = len(errors)
    middle, mean = Fraction(n - 1, 2), Fraction(sum(errors), n)
    slope = sum((i - middle) * (e - mean) for i, e in enumerate(errors))

    assert falls(errors) is (slope < 0)


@given(some_errors)
def test_falls_as_numpys_line_of_best_fit_does(errors: list[int]) -> None:
    slope = np.polyfit(range(len(errors)), errors, 1)[0]
    assume(abs(slope) > 1e-6)

    assert falls(errors) is bool(slope < 0)


@given(error, st.integers(2, 12))
def test_equal_errors_do_not_fall(value: int, n: int) -> None:
    assert not falls([value] * n)


def test_an_error_that_only_dips_does_not_fall() -> None:
    assert not falls([5, 3, 1, 3, 5])


@given(some_errors, share)
def test_the_last_error_must_be_below_the_threshold(errors: list[int], tau: int) -> None:
    terms = Terms(Rule.THRESHOLD, threshold_ppm=tau)

    assert quality(terms, [*errors, tau]) == 0
    assert tau == 0 or quality(terms, [*errors, tau - 1]) == PPM


@given(some_errors, share)
def test_both_and_either_are_what_they_say(errors: list[int], tau: int) -> None:
    worth = {rule: quality(Terms(rule, threshold_ppm=tau), errors) for rule in PUBLISHED}

    assert worth[Rule.BOTH] == min(worth[Rule.TREND], worth[Rule.THRESHOLD])
    assert worth[Rule.EITHER] == max(worth[Rule.TREND], worth[Rule.THRESHOLD])
    assert set(worth.values()) <= {0, PPM}


# --- the rule gain -------------------------------------------------------------------------------


@given(error, share, st.lists(error, max_size=4))
def test_equally_much_gain_is_enough_and_less_is_not(
    before: int, gain: int, between: list[int]
) -> None:
    terms = Terms(gain_ppm=gain, least_ppm=1)
    bound = floor(before * (1 - Fraction(gain, PPM)))

    assert gain_quality(terms, [before, *between, bound, terms.harm_ppm]) == max(PPM - bound, 1)
    assert gain_quality(terms, [before, *between, bound + 1, terms.harm_ppm]) == 0


@given(st.integers(0, PPM - 1))
def test_equally_much_misdirection_is_allowed_and_more_is_not(harm: int) -> None:
    terms = Terms(clear_ppm=0, harm_ppm=harm)

    assert gain_quality(terms, [PPM, 0, harm]) == PPM
    assert gain_quality(terms, [PPM, 0, harm + 1]) == 0


@given(st.integers(0, PPM - 1), error, error)
def test_a_clear_direction_is_enough(clear: int, before: int, after: int) -> None:
    terms = Terms(clear_ppm=clear, harm_ppm=0)

    assert gain_quality(terms, [before, after, clear]) == max(PPM - after, terms.least_ppm)
    assert gain_quality(terms, [before, after, clear + 1]) == 0


@given(st.integers(1, PPM), st.integers(121_000, PPM))
def test_an_update_that_leaves_the_open_error_and_is_not_clear_is_refused(
    open_: int, wrong_way: int
) -> None:
    assert gain_quality(Terms(), [open_, open_, wrong_way]) == 0


@given(st.integers(1, PPM), error)
def test_what_is_accepted_is_worth_the_least_share_at_least(least: int, after: int) -> None:
    assert gain_quality(Terms(least_ppm=least), [PPM, after, 0]) == max(least, PPM - after)


# --- judging -------------------------------------------------------------------------------------


@given(st.integers(1, MAX_DATA_COST), st.integers(0, MAX_RATE), st.integers(0, 970_000))
def test_due_is_the_price_times_the_quality_rounded_down(
    data_cost: int, rate: int, left: int
) -> None:
    terms = Terms(rate=rate, max_data_cost=MAX_DATA_COST, least_ppm=1)

    reason, due = judge(terms, contribution([PPM, left, 0], data_cost))

    assert reason is Refusal.NONE
    assert due == floor(data_cost * rate * (1 - Fraction(left, PPM)))
    assert due < 2**96


@pytest.mark.parametrize("rule", Rule)
def test_evidence_must_be_of_the_right_length(rule: Rule) -> None:
    least = 3 if rule is Rule.GAIN else 2

    assert [is_well_formed(rule, [0] * n) for n in (0, least - 1, least)] == [False, False, True]
    assert is_well_formed(rule, [0] * MAX_ERRORS)
    assert not is_well_formed(rule, [0] * (MAX_ERRORS + 1))


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("wrong", [-1, PPM + 1, UNMEASURED])
@pytest.mark.parametrize("place", range(5))
def test_every_error_must_be_a_share(rule: Rule, wrong: int, place: int) -> None:
    errors = [0, PPM, 1, 2, 3]
    assert is_well_formed(rule, errors)

    errors[place] = wrong
    assert not is_well_formed(rule, errors)


@pytest.mark.parametrize(
    ("errors", "data_cost", "reason"),
    [
        ((), 0, Refusal.BAD_DATA_COST),
        ((), 1001, Refusal.BAD_DATA_COST),
        ((), -1, Refusal.BAD_DATA_COST),
        ((), 1, Refusal.BAD_EVIDENCE),
        ((0, PPM + 1, 0), 1000, Refusal.BAD_EVIDENCE),
        ((0, PPM, PPM), 1000, Refusal.WORTHLESS),
        ((PPM, 0, PPM), 1000, Refusal.WORTHLESS),
        ((PPM, PPM, 0), 1000, Refusal.NONE),
        ((PPM, 0, 0), 1000, Refusal.NONE),
    ],
)
def test_the_first_reason_is_told(errors: tuple[int, ...], data_cost: int, reason: Refusal) -> None:
    found, due = judge(Terms(), contribution(errors, data_cost))

    assert found is reason
    assert (due > 0) is (reason is Refusal.NONE)


def test_rules_have_names() -> None:
    assert [Rule.named(str(rule)) for rule in Rule] == list(Rule)
    with pytest.raises(ConfigError, match="gain, trend, threshold, both, either"):
        Rule.named("trust")


# --- what is measured ----------------------------------------------------------------------------

MEASURES = (error_rate, open_error)


def learnt(table: Table, labels: Labels, step: float) -> Table:
    """A model whose log-odds changed in favour of the truth."""
    odds = np.log(table) + step * np.eye(N_CLASSES)[labels]
    return softmax(odds)


def softmax(odds: Table) -> Table:
    raised = np.exp(odds - odds.max(axis=1, keepdims=True))
    summed: Table = raised / raised.sum(axis=1, keepdims=True)
    return summed


@pytest.mark.parametrize("measure", MEASURES)
@given(samples())
def test_errors_are_shares_and_leave_the_probabilities_alone(
    measure: Any, drawn: tuple[Table, Labels]
) -> None:
    table, labels = drawn
    before = table.copy()

    assert 0 <= measure(table, labels) <= 1
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("measure", MEASURES)
@given(samples(), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(
    measure: Any, drawn: tuple[Table, Labels], random: Any
) -> None:
    table, labels = drawn
    order = random.sample(range(len(labels)), len(labels))

    assert measure(table[order], labels[order]) == pytest.approx(measure(table, labels), abs=1e-9)


@given(samples(least=2), st.floats(1e-3, 1e3))
def test_probabilities_need_not_sum_to_one(drawn: tuple[Table, Labels], factor: float) -> None:
    table, labels = drawn

    assert open_error(table * factor, labels) == pytest.approx(open_error(table, labels), abs=1e-9)


@given(samples(least=2), st.floats(0, 1))
def test_a_model_nearer_to_the_truth_does_no_worse(
    drawn: tuple[Table, Labels], step: float
) -> None:
    table, labels = drawn
    nearer = (1 - step) * table + step * np.eye(N_CLASSES)[labels]

    assert open_error(nearer, labels) <= open_error(table, labels) + 1e-9


@given(samples(least=2))
def test_a_constant_answer_scores_one(drawn: tuple[Table, Labels]) -> None:
    table, labels = drawn
    table[:] = table[0]

    assert open_error(table, labels) == 1


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(samples(least=2))
def test_a_perfect_answer_scores_almost_nothing(kind: Any, drawn: tuple[Table, Labels]) -> None:
    _, labels = drawn

    assert open_error(np.eye(N_CLASSES, dtype=kind)[labels], labels) == pytest.approx(0.001)


@pytest.mark.parametrize("sure", [1.0, 0.5, 0.0])
def test_one_class_scores_one_whatever_the_model(sure: float) -> None:
    labels = np.array([2, 2, 2])
    table = np.full((3, N_CLASSES), (1 - sure) / (N_CLASSES - 1))
    table[:, 2] = sure

    assert open_error(table, labels) == 1
    assert misdirection(np.full((3, N_CLASSES), 0.2), table, labels) == 1


def test_no_probability_for_any_class_is_not_an_answer() -> None:
    assert open_error(np.zeros((3, N_CLASSES)), np.array([0, 1, 2])) == 1


def test_the_open_error_still_falls_when_a_right_model_becomes_surer() -> None:
    labels = np.array([0, 1, 2])
    tables = [np.full((3, N_CLASSES), (1 - sure) / 4) for sure in (0.6, 0.8, 0.99)]
    for table, sure in zip(tables, (0.6, 0.8, 0.99), strict=True):
        table[np.arange(3), labels] = sure
    rates, errors = ([measure(t, labels) for t in tables] for measure in (error_rate, open_error))

    assert rates == [0, 0, 0]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 3


@given(samples(least=2))
def test_an_update_that_changes_nothing_is_misdirected_by_one_half_and_luck(
    drawn: tuple[Table, Labels],
) -> None:
    table, labels = drawn

    assert misdirection(table, table, labels) == pytest.approx(0.5 + luck(labels))


@given(samples(least=2), st.floats(0.01, 5))
def test_learning_the_truth_is_not_misdirected_and_unlearning_it_is(
    drawn: tuple[Table, Labels], step: float
) -> None:
    table, labels = drawn
    table = np.maximum(table, 1e-6)

    assert misdirection(table, learnt(table, labels, step), labels) == pytest.approx(luck(labels))
    assert misdirection(table, learnt(table, labels, -step), labels) == 1


@given(samples(least=2), st.integers(0, 2**32))
def test_leaning_towards_classes_is_no_direction(drawn: tuple[Table, Labels], seed: int) -> None:
    table, labels = drawn
    table = np.maximum(table, 1e-6)
    leaning = np.random.default_rng(seed).normal(size=N_CLASSES)

    after = softmax(np.log(table) + leaning)

    assert misdirection(table, after, labels) == pytest.approx(0.5 + luck(labels))


@given(samples(least=2), st.integers(0, 2**32), st.floats(0.1, 2))
def test_misdirection_does_not_see_how_large_a_step_is_nor_other_classes(
    drawn: tuple[Table, Labels], seed: int, factor: float
) -> None:
    table, labels = drawn
    table = np.maximum(table, 1e-4)
    change = np.random.default_rng(seed).normal(size=table.shape)
    scaled = factor * change
    scaled[:, np.setdiff1d(np.arange(N_CLASSES), labels)] += 1

    after = [softmax(np.log(table) + step) for step in (change, scaled)]
    found = [misdirection(table, probabilities, labels) for probabilities in after]

    assert found[0] == pytest.approx(found[1])
    assert luck(labels) <= found[0] <= 1


@given(samples(least=2), st.integers(0, 2**32))
def test_the_order_of_the_samples_does_not_matter_to_misdirection(
    drawn: tuple[Table, Labels], seed: int
) -> None:
    table, labels = drawn
    rng = np.random.default_rng(seed)
    after = softmax(rng.normal(size=table.shape))
    order = rng.permutation(len(labels))

    found = misdirection(table[order], after[order], labels[order])

    assert found == pytest.approx(misdirection(table, after, labels), abs=1e-9)


def luck(labels: Labels) -> float:
    return 0.2 / len(np.unique(labels))


# --- evidence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", Rule)
@given(samples(), st.integers(2, 5))
def test_evidence_is_well_formed_and_its_ends_are_those_of_the_two_models(
    rule: Rule, drawn: tuple[Table, Labels], n: int
) -> None:
    table, labels = drawn
    tables = [np.roll(table, shift, axis=1) for shift in range(n)]

    errors = evidence(rule, tables, labels)

    assert is_well_formed(rule, errors)
    assert len(errors) == n + (rule is Rule.GAIN)
    assert ends(rule, errors) == evidence(rule, [tables[0], tables[-1]], labels)


@given(samples())
def test_evidence_of_the_rule_gain_is_open_errors_then_the_misdirection(
    drawn: tuple[Table, Labels],
) -> None:
    table, labels = drawn
    tables = [table, table[:, ::-1], np.roll(table, 1, axis=1)]

    expected = [open_error(t, labels) for t in tables]
    expected.append(misdirection(tables[0], tables[2], labels))

    assert evidence(Rule.GAIN, tables, labels) == tuple(floor(e * PPM + 0.5) for e in expected)


@pytest.mark.parametrize("rule", Rule)
@given(samples())
def test_an_echo_is_refused_by_the_rules_that_compare(
    rule: Rule, drawn: tuple[Table, Labels]
) -> None:
    table, labels = drawn
    errors = evidence(rule, [table] * 6, labels)

    assert rule in (Rule.THRESHOLD, Rule.EITHER) or quality(Terms(rule), errors) == 0


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.full((3, 5), 0.2), r"shape \(3, 5\) for 2 samples"),
        (np.full(2, 0.2), r"shape \(2,\) for 2 samples"),
        (np.full((2, 5, 1), 0.2), r"shape \(2, 5, 1\) for 2 samples"),
        (np.full((2, 4), 0.25), "of classes up to 4"),
        (np.full((2, 5), np.nan), "finite and not negative"),
        (np.full((2, 5), np.inf), "finite and not negative"),
        (np.full((2, 5), -0.2), "finite and not negative"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_table_of_probabilities_is_refused(
    rule: Rule, table: Table, said: str, place: int
) -> None:
    tables = [np.full((2, 5), 0.2), np.full((2, 5), 0.2)]
    tables[place] = table

    with pytest.raises(FormatError, match=said):
        evidence(rule, tables, np.array([0, 4]))


# --- the same rules in Solidity ------------------------------------------------------------------

MODEL: Arrays = {"w": np.zeros(1, np.float32)}
BATCH = 32
OWNER: LocalAccount = Account.from_key(b"\x01" * 32)
DEVICES: list[LocalAccount] = [Account.from_key((2 + i).to_bytes(32, "big")) for i in range(BATCH)]


hundreds = st.integers(0, PPM // 100).map(lambda n: 100 * n)  # of whole percents, whole ppm
percents = st.integers(0, 100).map(lambda n: PPM // 100 * n)


def near(value: int) -> st.SearchStrategy[int]:
    return st.integers(value - 1, value + 1).map(lambda n: min(max(n, 0), PPM))


@st.composite
def terms_of(draw: st.DrawFn, rule: Rule) -> Terms:
    clear, harm = sorted((draw(share | percents), draw(share | percents)))
    return Terms(
        rule,
        threshold_ppm=draw(share | percents),
        gain_ppm=draw(share | percents),
        clear_ppm=clear,
        harm_ppm=harm,
        least_ppm=draw(st.integers(1, PPM)),
        rate=draw(st.integers(1, MAX_RATE) | st.sampled_from([10**15, MAX_RATE, 0])),
        max_data_cost=draw(st.sampled_from([1, 1000, MAX_DATA_COST])),
    )


@st.composite
def borderline(draw: st.DrawFn, terms: Terms) -> list[int]:
    """Errors that are accepted or refused by a hair."""
    if terms.rule is not Rule.GAIN:
        ramp = draw(st.lists(error, min_size=1, max_size=5))
        return [*ramp, *ramp[::-1], draw(near(terms.threshold_ppm))]
    before = draw(error | hundreds)
    after = before * (PPM - terms.gain_ppm) // PPM
    wrong_way = draw(st.sampled_from([terms.clear_ppm, terms.harm_ppm]))
    between = draw(st.lists(error, max_size=3))
    return [before, *between, draw(near(after)), draw(near(wrong_way))]


@st.composite
def claims(draw: st.DrawFn, terms: Terms) -> tuple[int, list[int]]:
    """A data cost and errors."""
    most = terms.max_data_cost
    cost = st.integers(1, most) | st.sampled_from([0, 1, most, min(most + 1, MAX_DATA_COST)])
    kind = draw(st.sampled_from(["borderline", "borderline", "any", "flat", "malformed"]))
    if kind == "malformed":
        wrong = st.sampled_from([PPM + 1, UNMEASURED]) | error
        sizes = st.sampled_from([0, 1, 2, 3, 4, 6, MAX_ERRORS, MAX_ERRORS + 1])
        n = draw(sizes)
        return draw(cost), [draw(wrong)] * n
    if kind == "flat":
        return draw(cost), [draw(error)] * draw(st.integers(2, 8))
    errors = borderline(terms) if kind == "borderline" else st.lists(error, max_size=12)
    return draw(cost), draw(errors)


@contextmanager
def deployed(path: Path, terms: Terms) -> Iterator[Federation]:
    """A run with these terms, as the package begins one, its devices enrolled."""
    plan = RecordAndRewardPlan(
        run=secrets.token_hex(8),
        model=Format.of(MODEL),
        rule=terms.rule,
        threshold_ppm=terms.threshold_ppm,
        gain_ppm=terms.gain_ppm,
        clear_ppm=terms.clear_ppm,
        harm_ppm=terms.harm_ppm,
        least_ppm=terms.least_ppm,
        rate=terms.rate,
        max_data_cost=terms.max_data_cost,
        patience_s=3600,
        aggregation="mean",
        inner="FedAvg",
        learning_rate=1.0,
        samples_per_class=10,
        validation_digest="00" * 32,
        tolerance_ppm=0,
        readers="",
        keep_rounds=0,
        **WITHOUT_NOISE,
        **IN_THE_CLEAR,
    )
    run = RecordAndRewardRun.start(
        path, "embedded", OWNER, plan, Funds(10**18), MODEL, lambda _: UNMEASURED
    )
    run.federation.enrol([device.address for device in DEVICES])
    yield run.federation
    run.close()


@pytest.mark.parametrize("rule", Rule)
@settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_the_contract_judges_as_python_does(
    rule: Rule, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    terms = data.draw(terms_of(rule))
    drawn = data.draw(st.lists(claims(terms), min_size=BATCH, max_size=BATCH))
    batch = []
    with deployed(tmp_path_factory.mktemp("run"), terms) as federation:
        for device, (data_cost, errors) in zip(DEVICES, drawn, strict=True):
            made = replace(contribution(errors, data_cost), device=device.address)
            batch.append(Signed(made, sign(made.encode(federation.domain), device)))
        verdicts = federation.submit(batch)

    for signed, verdict in zip(batch, verdicts, strict=True):
        assert verdict.signed == signed
        assert (verdict.reason, verdict.due) == judge(terms, signed.contribution)
