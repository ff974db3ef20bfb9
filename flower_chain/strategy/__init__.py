"""Flower strategies that record what they do on a ledger."""

from flwr.app import Context
from flwr.serverapp.strategy import Strategy

from flower_chain.examiner import Examiner
from flower_chain.strategy.base import LedgerStrategy
from flower_chain.strategy.one_line import tell_in_one_line
from flower_chain.strategy.record_and_reward import RecordAndReward
from flower_chain.strategy.settings import PREFIX, Settings

__all__ = ["LedgerStrategy", "RecordAndReward", "Settings", "wrap"]


def wrap(strategy: Strategy, context: Context, examiner: Examiner) -> Strategy:
    """Wrap a Flower strategy as the run-config says.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy.
    context : Context
        The ServerApp's; its run-config holds the settings under ``chain.``: see :class:`Settings`.
    examiner : Examiner
        The owner's validation data.

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
    if context.run_config.get(f"{PREFIX}scheme") == "fedavg":
        return strategy
    settings = Settings.from_run_config(context.run_config, context.run_id)
    return RecordAndReward(strategy, examiner, settings)
