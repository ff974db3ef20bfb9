"""Flower's own differential privacy around the inner strategy: what of it works with a ledger.

Flower's wrappers shorten each update to a norm of C, average them, and add noise for the share that
one device has in the mean. That share is one over the number of devices only if all weigh the same,
in a mean. The noise is the server's, by NumPy's generator: it hides a device from those whom the
model is shown to, not from the server; and no budget of it is kept on the ledger.
"""

from typing import TypeGuard

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from flwr.supercore.differential_privacy import KEY_NORM_BIT

from flower_chain.errors import ConfigError
from flower_chain.privacy.mechanisms import Kind, norm
from flower_chain.updates import Arrays, Format

CentralDp = (
    DifferentialPrivacyServerSideFixedClipping
    | DifferentialPrivacyServerSideAdaptiveClipping
    | DifferentialPrivacyClientSideFixedClipping
    | DifferentialPrivacyClientSideAdaptiveClipping
)

CLIPPED = 1 - 1e-5
"""The share of its largest norm that an update has, up to rounding, if it was shortened."""


def is_central_dp(strategy: Strategy) -> TypeGuard[CentralDp]:
    """Whether a strategy is one of Flower's wrappers."""
    return isinstance(strategy, CentralDp)


def check_central_dp(strategy: Strategy) -> None:
    """Refuse a wrapper whose noise would not fit what is averaged.

    Raises
    ------
    ConfigError
        With the reason.
    """
    if not is_central_dp(strategy):
        return
    wrapper, inner = type(strategy).__name__, strategy.strategy
    if type(inner).aggregate_train is not FedAvg.aggregate_train:
        raise ConfigError(
            f"{wrapper} around {type(inner).__name__}: its noise is made for the mean of the "
            "updates, and that aggregates in its own way; wrap FedAvg, or one that averages as it "
            "does"
        )
    if getattr(strategy, "accountant", None) is not None:
        raise ConfigError(
            f"{wrapper} with an accountant ends the run when one update of "
            f"{strategy.num_sampled_clients} is missing, and here a bad one is left out: leave the "
            "accountant out"
        )


def check_arrays(strategy: Strategy, model: Format) -> None:
    """Refuse a model that a wrapper can't shorten updates to: one with whole numbers.

    Raises
    ------
    ConfigError
        Naming them.
    """
    whole = ", ".join(spec.key for spec in model.whole)
    if whole and is_central_dp(strategy):
        raise ConfigError(
            f"{type(strategy).__name__}: the model holds whole numbers, which it can't clip: "
            f"{whole} (of BatchNorm: use GroupNorm)"
        )


def fit_noise(strategy: Strategy, number: int) -> None:
    """Have a wrapper add the noise for a mean of so many updates, of those that were accepted."""
    if is_central_dp(strategy):
        strategy.num_sampled_clients = number


def norm_bit(strategy: Strategy, update: Arrays) -> dict[str, float]:
    """What adaptive clipping on the devices wants to know of each: whether it was shortened.

    It is seen from the update itself, never a device's own claim: one that left it out would
    otherwise end the run.
    """
    if not isinstance(strategy, DifferentialPrivacyClientSideAdaptiveClipping):
        return {}
    clipped = norm(update, Kind.GAUSSIAN) >= CLIPPED * strategy.clipping_norm
    return {KEY_NORM_BIT: int(clipped)}
