"""What a command that was called in this process says."""

from typer.testing import Result


def assert_refused(done: Result, *words: str) -> None:
    """Exit status 1, and one line with these words."""
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.output.splitlines() if "Error" in line or "Reverted" in line]
    assert all(word.lower() in line.lower() for word in words), done.output
    assert "Traceback" not in done.output
