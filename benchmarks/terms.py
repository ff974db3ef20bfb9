"""What a run agrees on if nobody sets anything."""

from dataclasses import dataclass

from flower_chain.records import PPM, to_ppm
from flower_chain.rules.record_and_reward import Rule
from flower_chain.strategy.settings import RecordAndRewardSettings


@dataclass(frozen=True)
class Terms:
    """The terms of a run of record-and-reward as they are unless somebody sets them.

    But for the rate: the full price of a contribution is ``data_cost * PPM``.
    """

    rule: Rule
    threshold_ppm: int = to_ppm(RecordAndRewardSettings.threshold)
    gain_ppm: int = to_ppm(RecordAndRewardSettings.gain)
    clear_ppm: int = to_ppm(RecordAndRewardSettings.clear)
    harm_ppm: int = to_ppm(RecordAndRewardSettings.harm)
    least_ppm: int = to_ppm(RecordAndRewardSettings.least)
    rate: int = PPM
    max_data_cost: int = RecordAndRewardSettings.max_data_cost
