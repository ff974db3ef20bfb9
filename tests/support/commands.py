"""What a command that was called in this process says."""

from typer.testing import Result

from flower_chain.errors import FlowerChainError


def _kinds(kind: type[FlowerChainError]) -> set[type[FlowerChainError]]:
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


EXCEPTIONS = {kind.__name__ for kind in _kinds(FlowerChainError)}


def assert_refused(done: Result, *words: str) -> None:
    """Exit status 1, and one line with these words."""
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.output.splitlines() if line.split(" ")[0] in EXCEPTIONS]
    assert all(word.lower() in line.lower() for word in words), done.output
    assert "Traceback" not in done.output
