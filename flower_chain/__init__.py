"""Accountable federated learning: Flower updates signed, recorded, judged and paid for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flower_chain import _keccak as _keccak  # before what hashes; see there
from flower_chain.client import ClientApp, Validation, private, validation_samples
from flower_chain.examiner import Examiner

if TYPE_CHECKING:
    from flower_chain.strategy import (
        BlockFlow,
        BlockFlowSettings,
        DataTrust,
        DataTrustSettings,
        RecordAndReward,
        RecordAndRewardSettings,
        wrap,
    )

__all__ = [
    "BlockFlow",
    "BlockFlowSettings",
    "ClientApp",
    "DataTrust",
    "DataTrustSettings",
    "Examiner",
    "RecordAndReward",
    "RecordAndRewardSettings",
    "Validation",
    "private",
    "validation_samples",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """The strategies, with the ledgers that they bring: devices start faster without them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("flower_chain.strategy"), name)
