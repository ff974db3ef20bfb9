"""Where the time of a run goes: every moment belongs to one stage."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

Stages = Mapping[str, float]

Place = tuple[Any, str, str]
"""What is timed: whose function, its name, and the stage that it is."""


class Lap:
    """What the clocks showed, in seconds by stage.

    Attributes
    ----------
    elapsed : dict of str to float
        Wall-clock time; that of all stages is the whole lap's.
    cpu : dict of str to float
        CPU time of all threads.
    """

    def __init__(self) -> None:
        self.elapsed: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)


class Stopwatch:
    """Shares the time out among stages; where one is inside another, the inner has it.

    Attributes
    ----------
    laps : list of Lap
        The last one is not over yet.
    """

    def __init__(self) -> None:
        self.laps = [Lap()]
        self._main = threading.get_ident()
        self._stages: dict[int, list[str]] = {self._main: ["rest"]}
        self._seen = {self._main: (time.perf_counter(), time.process_time())}
        self._in_threads: dict[str, float] = defaultdict(float)

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time put down to `stage`."""

        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            thread = threading.get_ident()
            self._note(thread)
            self._stages.setdefault(thread, []).append(stage)
            try:
                return function(*args, **options)
            finally:
                self._note(thread)
                self._stages[thread].pop()

        return timed

    def lap(self) -> None:
        """Begin the next lap."""
        self._note(self._main)
        self._share_out()
        self.laps.append(Lap())

    def _note(self, thread: int) -> None:
        """Put the time since this thread was last seen down to the stage that it is in."""
        now = time.perf_counter(), time.process_time()
        if stages := self._stages.get(thread):
            lap, (elapsed, cpu) = self.laps[-1], self._seen[thread]
            if thread == self._main:
                lap.elapsed[stages[-1]] += now[0] - elapsed
                lap.cpu[stages[-1]] += now[1] - cpu
            else:
                self._in_threads[stages[-1]] += now[0] - elapsed
        self._seen[thread] = now

    def _share_out(self) -> None:
        """While other threads worked the main one waited in ``admit``: split that as they did."""
        total = sum(self._in_threads.values())
        for sums in (self.laps[-1].elapsed, self.laps[-1].cpu):
            waited = sums["admit"]
            for stage, seconds in self._in_threads.items():
                sums[stage] += waited * seconds / total
                sums["admit"] -= waited * seconds / total
        self._in_threads.clear()


@contextmanager
def timed_places(watch: Stopwatch, places: Sequence[Place]) -> Iterator[None]:
    """Time functions while the context lasts."""
    with ExitStack() as stack:
        for owner, name, stage in places:
            timed = watch.timing(stage, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        yield
