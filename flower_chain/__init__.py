"""Accountable federated learning: Flower updates signed, recorded, judged and paid for."""

from flower_chain.client import ClientApp, Validation, validation_samples
from flower_chain.examiner import Examiner
from flower_chain.strategy import RecordAndReward, Settings, wrap

__all__ = [
    "ClientApp",
    "Examiner",
    "RecordAndReward",
    "Settings",
    "Validation",
    "validation_samples",
    "wrap",
]
