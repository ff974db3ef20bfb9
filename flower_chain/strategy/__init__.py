"""Flower strategies that record what they do on a ledger."""

from flwr.app import Context
from flwr.serverapp.strategy import Strategy

from flower_chain.errors import ConfigError
from flower_chain.examiner import Examiner
from flower_chain.strategy.base import LedgerStrategy
from flower_chain.strategy.blockflow import BlockFlow
from flower_chain.strategy.data_trust import DataTrust
from flower_chain.strategy.one_line import tell_in_one_line
from flower_chain.strategy.record_and_reward import RecordAndReward
from flower_chain.strategy.settings import (
    DEFAULTS,
    PREFIX,
    SCHEMES,
    BlockFlowSettings,
    DataTrustSettings,
    RecordAndRewardSettings,
    Settings,
)

__all__ = [
    "BlockFlow",
    "BlockFlowSettings",
    "DataTrust",
    "DataTrustSettings",
    "LedgerStrategy",
    "RecordAndReward",
    "RecordAndRewardSettings",
    "Settings",
    "wrap",
]

PLAIN = "fedavg"
"""The scheme that is none."""


CANT_ENCRYPT = {PLAIN: "which is Flower's own and encrypts nothing"}
"""Why updates can't be encrypted; all other schemes but the default one have the same reason."""


def wrap(strategy: Strategy, context: Context, examiner: Examiner | None = None) -> Strategy:
    """Wrap a Flower strategy as the run-config says.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy.
    context : Context
        The ServerApp's; its run-config holds the settings under ``chain.``: see :class:`Settings`.
    examiner : Examiner, optional
        The owner's validation data, for a scheme whose owner judges: record-and-reward.

    Returns
    -------
    Strategy
        `strategy` itself if ``chain.scheme`` is ``fedavg``.

    Raises
    ------
    ConfigError
        If a setting can't be used.
    """
    tell_in_one_line()
    scheme = context.run_config.get(f"{PREFIX}scheme", DEFAULTS["scheme"])
    encryption = context.run_config.get(f"{PREFIX}encryption")
    if encryption and scheme != DEFAULTS["scheme"]:
        why = CANT_ENCRYPT.get(str(scheme), "its devices score each other's models")
        raise ConfigError(f"encryption = {encryption!r}: not with scheme = {scheme!r}, {why}")
    if scheme == PLAIN:
        return strategy
    if scheme not in SCHEMES:
        names = ", ".join((*SCHEMES, PLAIN))
        raise ConfigError(f"scheme = {scheme!r}: it must be one of {names}")
    settings = SCHEMES[str(scheme)].from_run_config(context.run_config, context.run_id)
    if isinstance(settings, BlockFlowSettings):
        return BlockFlow(strategy, settings)
    if isinstance(settings, DataTrustSettings):
        return DataTrust(strategy, settings)
    assert isinstance(settings, RecordAndRewardSettings)
    if examiner is None:
        raise ConfigError(f"scheme = {scheme!r}: its owner judges, wrap() needs an Examiner")
    return RecordAndReward(strategy, examiner, settings)
