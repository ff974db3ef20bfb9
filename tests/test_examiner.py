from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_chain import Examiner
from flower_chain.errors import ConfigError
from flower_chain.rules.record_and_reward import Rule, evidence
from flower_chain.updates import Arrays

SEED, DEVICE = b"\1" * 32, "0x46D022Ff70B037eC89455189a6751F4c8597Aa8d"
X = np.arange(60, dtype=np.float32).reshape(30, 2)
Y = np.repeat([0, 1, 3], 10)


def predict(arrays: Arrays, x: Any) -> Any:
    """Class 0 with the probability in the arrays, class 1 otherwise."""
    surely = np.full(len(x), float(arrays["p"]))
    return np.stack([surely, 1 - surely, 0 * surely, 0 * surely], axis=1)


def model(p: float) -> Arrays:
    return {"p": np.array(p, np.float64)}


EXAMINER = Examiner(X, Y, predict)


def drawn(seed: bytes = SEED, device: str = DEVICE, classes: Any = (), m: int = 5) -> set[float]:
    """The first value of each sample, which names it."""
    return set(EXAMINER.draw(seed, device, classes, m)[0][:, 0].tolist())


# --- draws ---------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same() -> None:
    for one, other in zip(
        EXAMINER.draw(SEED, DEVICE, (), 5), EXAMINER.draw(SEED, DEVICE, (), 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_draw_is_the_same_in_every_version_of_the_package() -> None:
    x, y = EXAMINER.draw(SEED, DEVICE, (1,), 4)

    assert y.tolist() == [1] * 4
    assert x[:, 0].tolist() == [34.0, 26.0, 30.0, 24.0]


def test_another_seed_draws_others() -> None:
    assert drawn() != drawn(seed=b"\2" * 32)


def test_another_device_gets_others() -> None:
    assert drawn() != drawn(device="0x" + "1" * 40)


def test_each_class_has_as_many_samples_as_were_asked_for() -> None:
    _, y = EXAMINER.draw(SEED, DEVICE, (), 7)

    assert np.bincount(y).tolist() == [7, 7, 0, 7]


def test_a_class_with_fewer_gives_all_that_it_has() -> None:
    assert len(drawn(classes=(3,), m=1000)) == 10


def test_no_sample_comes_twice() -> None:
    assert len(drawn(m=10)) == 30


def test_only_the_classes_that_a_device_holds_are_drawn() -> None:
    _, y = EXAMINER.draw(SEED, DEVICE, (0, 3), 5)

    assert set(y.tolist()) == {0, 3}


def test_what_is_drawn_of_a_class_does_not_depend_on_the_others() -> None:
    assert drawn(classes=(0,)) < drawn(classes=(0, 1)) < drawn()


def test_the_samples_belong_to_their_classes() -> None:
    x, y = EXAMINER.draw(SEED, DEVICE, (), 5)

    np.testing.assert_array_equal(Y[(x[:, 0] / 2).astype(int)], y)


def test_a_device_that_tells_no_classes_gets_all() -> None:
    assert EXAMINER.known(()) == [0, 1, 3]


def test_classes_that_the_owner_has_no_data_of_are_left_out() -> None:
    assert EXAMINER.known((3, 2, 200, 0)) == [0, 3]


def test_a_device_that_holds_only_unknown_classes_gets_all() -> None:
    assert EXAMINER.known((2, 7)) == [0, 1, 3]


@given(st.binary(min_size=32, max_size=32), st.sets(st.integers(0, 255)), st.integers(1, 20))
def test_a_draw_is_never_empty(seed: bytes, classes: set[int], m: int) -> None:
    x, y = EXAMINER.draw(seed, DEVICE, sorted(classes), m)

    assert len(x) == len(y) == min(m, 10) * len(EXAMINER.known(sorted(classes)))


# --- measures ------------------------------------------------------------------------------------


def test_the_error_is_measured_on_all_data() -> None:
    assert EXAMINER.error(model(0.9)) == 666_667
    assert EXAMINER.error(model(0.1)) == 666_667


def confirms(errors: tuple[int, ...], tolerance: int, rule: Rule = Rule.TREND) -> bool:
    chosen = EXAMINER.choose(SEED, DEVICE, (0, 1, 3), 10)
    return EXAMINER.confirms(rule, errors, (model(0.9), model(0.1)), chosen, tolerance)


def test_the_true_errors_are_confirmed() -> None:
    assert confirms((666_667, 666_667), 0)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_errors_are_confirmed_up_to_the_tolerance(end: int, sign: int) -> None:
    errors = [666_667, 666_667]
    errors[end] += sign * 10

    assert confirms(tuple(errors), 10)
    assert not confirms(tuple(errors), 9)


def test_errors_between_first_and_last_are_not_looked_at() -> None:
    assert confirms((666_667, 5, 666_667), 0)


def test_under_gain_three_values_are_compared() -> None:
    x, y = EXAMINER.draw(SEED, DEVICE, (0, 1, 3), 10)
    true = evidence(Rule.GAIN, [predict(model(p), x) for p in (0.9, 0.1)], y)

    assert confirms(true, 0, Rule.GAIN)
    for place in range(3):
        off = [value - 2 * (i == place) for i, value in enumerate(true)]
        assert not confirms(tuple(off), 1, Rule.GAIN)


def test_a_model_without_finite_answers_is_refused() -> None:
    chosen = EXAMINER.choose(SEED, DEVICE, (), 5)

    assert not EXAMINER.confirms(Rule.GAIN, (0, 0, 0), (model(0.5), model(np.nan)), chosen, 10**6)


# --- the data ------------------------------------------------------------------------------------


def test_the_digest_names_the_data() -> None:
    assert EXAMINER.digest == Examiner(X.copy(), Y.astype(np.int32), predict).digest
    assert EXAMINER.digest != Examiner(X + 1, Y, predict).digest
    assert EXAMINER.digest != Examiner(X, Y[::-1], predict).digest


def test_the_digest_does_not_depend_on_the_memory_layout() -> None:
    assert Examiner(np.asfortranarray(X), Y, predict).digest == EXAMINER.digest


@pytest.mark.parametrize(("x", "y"), [(X[:5], Y), (X[:0], Y[:0]), (X, np.zeros(0, int))])
def test_data_that_do_not_fit_together_are_refused(x: Any, y: Any) -> None:
    with pytest.raises(ConfigError, match="validation samples with"):
        Examiner(x, y, predict)


def test_a_negative_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="classes count from 0"):
        Examiner(X, Y - 1, predict)
