"""Waiting for what a node will know soon."""

import time
from collections.abc import Iterator


def pauses(total: float) -> Iterator[float]:
    """Sleep between the passes of a loop, ever longer, `total` seconds in all; gives those slept.

    What a node does not answer meanwhile does not count.
    """
    slept, pause = 0.0, 0.005
    while slept < total:
        yield slept
        time.sleep(pause)
        slept += pause
        pause = min(1.5 * pause, 1.0)
