"""How all commands print, and how they fail."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from flower_chain.errors import FlowerChainError

console = Console(width=None if sys.stdout.isatty() else 160)


@contextmanager
def reporting(as_json: bool = False) -> Iterator[None]:
    """One line for what goes wrong on purpose, and exit status 1."""
    try:
        yield
    except FlowerChainError as fault:
        if as_json:
            print(json.dumps({"verified": False, "error": type(fault).__name__, "why": str(fault)}))
        else:
            console.print(f"[red]{type(fault).__name__}[/] {escape(str(fault))}", soft_wrap=True)
        raise typer.Exit(1) from None
