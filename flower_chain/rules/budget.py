"""What a contribution may say that its device has spent of its privacy.

The same rule in Solidity: the end of ``Federation._check``.
"""

from flower_chain.records import Refusal


def check(budget: int, before: int, spent: int) -> Refusal:
    """Whether a contribution may bring what its device has spent from `before` to `spent`.

    Where there is a budget every contribution costs something: one that says the same as before is
    an old charge told again, or an update without noise.

    Parameters
    ----------
    budget : int
        The most that a device may spend, in millionths of epsilon; 0 if none is counted.
    before, spent : int
        In the same unit.

    Returns
    -------
    Refusal
        ``NONE`` if it may.
    """
    if spent > budget:
        return Refusal.OVER_BUDGET
    if budget and spent <= before:
        return Refusal.BUDGET_DECREASED
    return Refusal.NONE
