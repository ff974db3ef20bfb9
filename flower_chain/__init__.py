"""Accountable federated learning: Flower updates signed, recorded, judged and paid for."""

from flower_chain import _keccak as _keccak  # first; see there
from flower_chain.client import ClientApp, Validation, private, validation_samples
from flower_chain.examiner import Examiner
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
