"""What every benchmark hands over: tables, for people, and claims with what was measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich import table as rich_table


@dataclass(frozen=True)
class Table:
    """A table, to be printed or written.

    Parameters
    ----------
    title : str
    columns : sequence of str
        The first is for names, the others are for numbers.
    rows : sequence of sequence of str
    note : str
        Said below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> rich_table.Table:
        """For the terminal."""
        printed = rich_table.Table(
            title=self.title, caption=self.note or None, box=box.SIMPLE_HEAD, title_justify="left"
        )
        for number, column in enumerate(self.columns):
            printed.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            printed.add_row(*row)
        return printed

    def markdown(self) -> str:
        """For a file."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows)]
        parts = [f"## {self.title}", "\n".join(lines), self.note]
        return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class Claim:
    """Something that is said of the package, or of a paper, and what a benchmark found.

    Parameters
    ----------
    claim : str
    source : str
        Who says so.
    target : str
        What was to be measured, such as ``>= 0.97``.
    measured : float
    holds : bool
    """

    claim: str
    source: str
    target: str
    measured: float
    holds: bool

    @classmethod
    def at_least(cls, claim: str, source: str, bound: float, measured: float) -> "Claim":
        """It holds if no less than `bound` was measured."""
        return cls(claim, source, f">= {bound:g}", measured, measured >= bound)

    @classmethod
    def at_most(cls, claim: str, source: str, bound: float, measured: float) -> "Claim":
        """It holds if no more than `bound` was measured."""
        return cls(claim, source, f"<= {bound:g}", measured, measured <= bound)

    @classmethod
    def about(
        cls, claim: str, source: str, value: float, within: float, measured: float
    ) -> "Claim":
        """It holds if what was measured is no further than `within` from `value`."""
        holds = abs(measured - value) <= within
        return cls(claim, source, f"{value:g} +- {within:g}", measured, holds)


def claims_table(claims: Sequence[Claim]) -> Table:
    """The claims, one on a row."""
    rows = [
        (c.claim, c.source, c.target, f"{c.measured:.3f}", "yes" if c.holds else "no")
        for c in claims
    ]
    return Table("Claims", ("claim", "source", "target", "measured", "holds"), rows)


def write_json(path: Path, rows: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> None:
    """Write what was measured, for programs: ``{"rows": [...], "claims": [...]}``."""
    content = {"rows": list(rows), "claims": [asdict(claim) for claim in claims]}
    path.write_text(json.dumps(content, indent=1) + "\n")
