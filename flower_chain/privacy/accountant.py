"""What a device has spent of its privacy after so many rounds.

The cost of a round is agreed before the run, so that the device, the owner and whoever verifies the
run get the same numbers from the same plan: Gaussian noise composes by Rényi differential privacy
(I. Mironov, CSF 2017) or by the privacy loss distribution (S. Gopi et al., NeurIPS 2021), both from
opacus; Laplace noise has a pure epsilon, and rounds simply add up.

The ledger holds whole numbers: epsilon in millionths, rounded up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from flower_chain.errors import ConfigError
from flower_chain.privacy.mechanisms import Kind

UNITS = 1_000_000
"""An epsilon of one, on the ledger."""

MAX_BUDGET = 2**63 - 1
"""Millionths of epsilon: what a message of Flower's holds."""

MAX_ROUNDS = 2**32 - 1
"""As many versions can a model have."""

METHODS = ("rdp", "prv")
"""How Gaussian noise is accounted for."""

PURE = "pure"
"""How Laplace noise is."""


@dataclass(frozen=True)
class Accountant:
    """Counts what rounds cost under the terms of one run.

    Parameters
    ----------
    kind : Kind
    noise : float
        Standard deviation or scale of the noise, as a multiple of the sensitivity.
    method : str
        ``rdp`` or ``prv``; of Laplace noise ``pure``.
    delta : float
        The probability that the bound may not hold with; of Laplace noise 0.
    sample_rate : float
        With DP-SGD, the probability that a record is in a step's batch; else 1.
    steps : int
        With DP-SGD, how many of them a round has; else 1.

    Raises
    ------
    ConfigError
        If a term is out of range.
    """

    kind: Kind
    noise: float
    method: str
    delta: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise _refused("noise", self.noise, "must be positive")
        is_pure = self.kind is Kind.LAPLACE
        methods = (PURE,) if is_pure else METHODS
        if self.method not in methods:
            raise _refused("accountant", self.method, f"must be {' or '.join(methods)}")
        if is_pure != (self.delta == 0) or not 0 <= self.delta < 1:
            raise _refused("delta", self.delta, "must be in (0, 1), and 0 with Laplace noise")
        if not 0 < self.sample_rate <= 1:
            raise _refused("sample-rate", self.sample_rate, "must be in (0, 1]")
        if not 0 < self.steps <= MAX_ROUNDS:
            raise _refused("steps", self.steps, "must be positive")
        if self.kind is not Kind.DP_SGD and (self.sample_rate, self.steps) != (1, 1):
            raise _refused("steps", self.steps, "and the sample rate must be 1 but for dp-sgd")

    def epsilon(self, rounds: int) -> float:
        """What so many rounds come to, at the terms' delta.

        Raises
        ------
        ConfigError
            If opacus is needed and not installed.
        """
        if self.kind is Kind.LAPLACE:
            return rounds / self.noise
        if rounds == 0:
            return 0.0
        return _epsilon(self, rounds * self.steps)

    def spent(self, rounds: int) -> int:
        """The same in millionths, rounded up, as a contribution holds it."""
        if self.kind is Kind.LAPLACE:
            return math.ceil(rounds * UNITS / Fraction(self.noise))
        return math.ceil(self.epsilon(rounds) * UNITS)

    def rounds(self, budget: int, most: int = MAX_ROUNDS) -> int:
        """How many rounds a budget pays, in millionths of epsilon; `most` if that is more."""
        below, above = 0, 1
        while self.spent(above) <= budget:
            if above == most:
                return above
            below, above = above, min(2 * above, most)
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if self.spent(middle) <= budget else (below, middle)
        return below

    def fits(self, spent: int, most: int) -> bool:
        """Whether that is what some number of rounds costs, from 1 to `most`."""
        rounds = self.rounds(spent, most)
        return rounds > 0 and self.spent(rounds) == spent


@lru_cache(maxsize=4096)
def _epsilon(terms: Accountant, steps: int) -> float:
    """Of so many steps with Gaussian noise."""
    try:
        if terms.method == "rdp":
            return _rdp_epsilon(terms, steps)
        from opacus.accountants import PRVAccountant  # noqa: PLC0415 (an optional extra)
    except ImportError as fault:
        raise _missing(fault) from None
    accountant = PRVAccountant()
    accountant.history = [(terms.noise, terms.sample_rate, steps)]
    return float(accountant.get_epsilon(delta=terms.delta))


def _rdp_epsilon(terms: Accountant, steps: int) -> float:
    from opacus.accountants.analysis import rdp  # noqa: PLC0415 (an optional extra)

    orders, divergences = _rdp_of_a_step(terms.noise, terms.sample_rate)
    composed = [steps * divergence for divergence in divergences]
    epsilon, _ = rdp.get_privacy_spent(orders=orders, rdp=composed, delta=terms.delta)
    return float(epsilon)


@lru_cache(maxsize=64)
def _rdp_of_a_step(noise: float, sample_rate: float) -> tuple[Sequence[float], Sequence[float]]:
    """Orders, and the divergence of each: the only part that takes long, and it is linear."""
    from opacus.accountants import RDPAccountant  # noqa: PLC0415 (an optional extra)
    from opacus.accountants.analysis import rdp  # noqa: PLC0415 (an optional extra)

    orders = RDPAccountant.DEFAULT_ALPHAS
    return orders, rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=orders)


def _missing(fault: ImportError) -> ConfigError:
    return ConfigError(
        f"Gaussian noise is accounted for by opacus, which can't be imported ({fault}): "
        'pip install "flower-chain[dp]"'
    )


def _refused(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{name} = {value!r}: it {rule}")
