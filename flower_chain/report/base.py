"""What the reports of all schemes have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from rich.console import RenderableType

from flower_chain.records import TOKEN_UNITS


class Summary(ABC):
    """What happened in a run."""

    @abstractmethod
    def tables(self) -> Iterator[RenderableType]:
        """For people."""

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """For programs; amounts are strings, since they exceed 2^53."""


def in_tokens(units: int) -> str:
    """An amount as people read it."""
    return f"{units / TOKEN_UNITS:,.4f}"
