"""Noise on an update before it leaves the device, which hides what the device's data are.

The update, all its arrays as one vector, is shortened to a norm of at most C (`clip`). Whatever
data a device has, its update is then at most 2 C from what it would be with any other data: that is
the sensitivity, and noise in proportion to it hides *all* of a device's data together, not a record
among them (user-level local differential privacy). It is 2 C and not C, since others know that the
device takes part; its update is not compared with none.

====================  ==========  ============================================================
mechanism             norm of C   noise on each number
====================  ==========  ============================================================
:attr:`~Kind.GAUSSIAN`  L2        normal, standard deviation ``noise * 2 C``
:attr:`~Kind.LAPLACE`   L1        Laplace, scale ``noise * 2 C``: epsilon is ``1 / noise``
====================  ==========  ============================================================

With :attr:`~Kind.DP_SGD` the noise is in the steps of the training instead, and hides a record: see
:mod:`flower_chain.privacy.dp_sgd`.

Sources: C. Dwork, A. Roth: "The Algorithmic Foundations of Differential Privacy" (2014), theorems
3.6 and A.1; M. Abadi et al.: "Deep Learning with Differential Privacy" (CCS 2016) for DP-SGD.

What floating-point numbers do to the proofs, which are about real ones: noise, and the sum of noise
and update, are computed in float64 and rounded to the update's own type. I. Mironov ("On
Significance of the Least Significant Bits for Differential Privacy", CCS 2012) reads values that
were hidden by Laplace noise from the lowest bits of float64. Of a float32 these bits are rounded
away, which makes that attack harder and is no proof against it; of a float64 they are there.
"""

import math
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_chain.errors import ConfigError
from flower_chain.privacy.source import Source
from flower_chain.updates import Arrays, Format


class Kind(StrEnum):
    """Where noise is added, and which."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"
    DP_SGD = "dp-sgd"


def check_format(layout: Format) -> None:
    """Refuse a model with whole numbers in it: they can't be shortened, and would not be hidden.

    Raises
    ------
    ConfigError
        Naming them.
    """
    if whole := ", ".join(spec.key for spec in layout.whole):
        raise ConfigError(
            f"the model holds whole numbers, which noise can't hide: {whole}; leave them out of "
            "what train() sends (of BatchNorm, which counts batches: use GroupNorm)"
        )


def norm(update: Arrays, kind: Kind) -> float:
    """The L1 norm of all numbers together for Laplace noise, else their L2 norm.

    NaN and infinity count as 0; a norm that float64 can't hold is infinite.
    """
    power = np.abs if kind is Kind.LAPLACE else np.square
    with np.errstate(over="ignore"):
        total = sum(float(power(_finite(array)).sum()) for array in update.values())
    return total if kind is Kind.LAPLACE else math.sqrt(total)


def protect(update: Arrays, kind: Kind, clip: float, noise: float, source: Source) -> Arrays:
    """The update, shortened and with noise.

    Parameters
    ----------
    update : Arrays
        Floats only.
    kind : Kind
        Gaussian or Laplace.
    clip : float
        C: the norm that the update has at most.
    noise : float
        Standard deviation or scale of the noise, as a multiple of the sensitivity 2 C.
    source : Source

    Returns
    -------
    Arrays
        In the update's item types. NaN and infinity in it count as 0: whatever the training came
        to, also if it failed, the result is as likely as the mechanism says.

    Raises
    ------
    ConfigError
        If there is an array of whole numbers.
    """
    check_format(Format.of(update))
    share = clip / max(norm(update, kind), clip)
    draw = source.laplace if kind is Kind.LAPLACE else source.normal
    spread = noise * 2 * clip
    return {
        key: (share * _finite(array) + spread * draw(array.shape)).astype(array.dtype)
        for key, array in update.items()
    }


def _finite(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
