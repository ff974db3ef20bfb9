"""What a command that was called in this process says."""

from typer.testing import Result

from flower_chain import errors

EXCEPTIONS = {name for name in vars(errors) if name[0].isupper()}


def assert_refused(done: Result, *words: str) -> None:
    """Exit status 1, and one line with these words."""
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.output.splitlines() if line.split(" ")[0] in EXCEPTIONS]
    assert all(word.lower() in line.lower() for word in words), done.output
    assert "Traceback" not in done.output
