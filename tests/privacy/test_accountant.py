"""What rounds cost: against Google's dp-accounting, and against what can be computed by hand."""

import math
import sys

import dp_accounting as dpa
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from flower_chain.errors import ConfigError
from flower_chain.privacy import accountant as module
from flower_chain.privacy.accountant import UNITS, Accountant
from flower_chain.privacy.mechanisms import Kind

DELTA = 1e-5


def gaussian(noise: float, method: str = "rdp", **terms: object) -> Accountant:
    return Accountant(
        Kind.GAUSSIAN, noise, method, DELTA, **({"sample_rate": 1.0, "steps": 1} | terms)
    )


def sgd(noise: float, rate: float, steps: int, method: str = "rdp") -> Accountant:
    return Accountant(Kind.DP_SGD, noise, method, DELTA, rate, steps)


def laplace(noise: float) -> Accountant:
    return Accountant(Kind.LAPLACE, noise, "pure", 0.0, 1.0, 1)


def event(terms: Accountant, rounds: int) -> dpa.DpEvent:
    """The same as dp-accounting names it."""
    step = dpa.GaussianDpEvent(terms.noise)
    if terms.sample_rate < 1:
        step = dpa.PoissonSampledDpEvent(terms.sample_rate, step)
    return dpa.SelfComposedDpEvent(step, rounds * terms.steps)


CASES = [
    (gaussian(2.3), 1),
    (gaussian(2.3), 10),
    (gaussian(0.8), 100),
    (sgd(1.0, 0.1, 10), 10),
    (sgd(1.5, 0.01, 50), 20),
]


@pytest.mark.parametrize(("terms", "rounds"), CASES)
def test_rdp_is_that_of_another_implementation(terms: Accountant, rounds: int) -> None:
    """Of sampled steps the two approximate broken orders in different ways."""
    oracle = RdpAccountant(RDPAccountant.DEFAULT_ALPHAS).compose(event(terms, rounds))
    tolerance = 1e-9 if terms.sample_rate == 1 else 1e-3
    assert terms.epsilon(rounds) == pytest.approx(oracle.get_epsilon(DELTA), rel=tolerance)


@pytest.mark.parametrize(("terms", "rounds"), CASES)
def test_prv_is_close_to_the_true_loss_and_rdp_above_it(terms: Accountant, rounds: int) -> None:
    prv = Accountant(terms.kind, terms.noise, "prv", DELTA, terms.sample_rate, terms.steps)
    oracle = PLDAccountant(value_discretization_interval=1e-3).compose(event(terms, rounds))
    truth = oracle.get_epsilon(DELTA)
    assert prv.epsilon(rounds) == pytest.approx(truth, abs=0.03, rel=0.01)
    assert terms.epsilon(rounds) > truth - 0.01


@settings(deadline=None, max_examples=200)
@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_laplace_rounds_add_up_and_are_rounded_up(noise: float, rounds: int) -> None:
    terms = laplace(noise)
    exact = rounds * UNITS / noise
    assert terms.epsilon(rounds) == pytest.approx(rounds / noise)
    assert exact * (1 - 1e-12) <= terms.spent(rounds) < exact * (1 + 1e-12) + 1


def test_laplace_is_dp_accountings_too() -> None:
    oracle = PLDAccountant().compose(dpa.SelfComposedDpEvent(dpa.LaplaceDpEvent(4.0), 3))
    epsilon = laplace(4.0).epsilon(3)
    assert oracle.get_delta(epsilon + 1e-3) < 1e-9 < oracle.get_delta(epsilon - 0.01)


@pytest.mark.parametrize("terms", [gaussian(1.0), laplace(0.5), sgd(1.0, 0.1, 10)])
def test_no_round_costs_nothing_and_each_costs_more(terms: Accountant) -> None:
    spent = [terms.spent(rounds) for rounds in range(20)]
    assert spent[0] == 0
    assert spent == sorted(set(spent))


@pytest.mark.parametrize("method", ["rdp", "prv"])
def test_the_cost_is_rounded_up(method: str) -> None:
    terms = gaussian(1.7, method)
    assert 0 <= terms.spent(5) - terms.epsilon(5) * UNITS < 1


@settings(deadline=None, max_examples=100)
@given(st.floats(0.05, 50), st.integers(1, 10**9), st.sampled_from([laplace, gaussian]))
def test_a_budget_pays_as_many_rounds_as_fit_and_no_more(noise, budget, kind) -> None:
    terms = kind(noise)
    rounds = terms.rounds(budget)
    assert terms.spent(rounds) <= budget < terms.spent(rounds + 1)


def test_a_budget_pays_at_most_what_is_asked_for() -> None:
    assert laplace(1.0).rounds(10 * UNITS, most=7) == 7
    assert laplace(1.0).rounds(2**63 - 1) == 2**32 - 1


def test_what_a_number_of_rounds_costs_fits_and_nothing_else() -> None:
    terms = gaussian(2.0)
    costs = {terms.spent(rounds) for rounds in range(1, 6)}
    assert all(terms.fits(cost, most=5) for cost in costs)
    assert not any(terms.fits(cost + odd, most=5) for cost in costs for odd in (-1, 1))
    assert not terms.fits(terms.spent(6), most=5)
    assert not terms.fits(0, most=5)
    assert not terms.fits(2**63 - 1, most=5)


def test_sampling_and_fewer_steps_cost_less() -> None:
    assert sgd(1.0, 0.1, 10).epsilon(3) < sgd(1.0, 0.2, 10).epsilon(3) < gaussian(1.0).epsilon(30)
    assert sgd(1.0, 0.1, 9).epsilon(3) < sgd(1.0, 0.1, 10).epsilon(3)


def test_without_opacus_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    module._epsilon.cache_clear()
    module._rdp_of_a_step.cache_clear()
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(ConfigError, match=r'pip install "flower-chain\[dp\]"'):
        gaussian(1.0).epsilon(1)
    assert math.isclose(laplace(2.0).epsilon(4), 2.0)
