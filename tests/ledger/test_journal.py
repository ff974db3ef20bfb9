import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flower_chain.errors import JournalError
from flower_chain.ledger.journal import FORMAT, Entry, Genesis, Journal, read

GENESIS = Genesis(7, 1_700_000_000, ("0x" + 40 * "1", "0x" + 40 * "2"))
ENTRIES = [Entry(f"0x0{i}", 1_700_000_000 + i, "0x" + 64 * str(i)) for i in range(1, 4)]

LOCK = """
import sys
from pathlib import Path
from flower_chain.ledger.journal import Genesis, Journal
journal = Journal(Path(sys.argv[1]), Genesis(1, 1, ()))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with a genesis and three blocks."""
    path = tmp_path / "run" / "ledger.journal"
    journal = Journal(path, GENESIS)
    for entry in ENTRIES:
        journal.append(entry)
    journal.close()
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def put_line(path: Path, number: int, line: bytes) -> None:
    """Replace a line, counted from one."""
    lines = lines_of(path)
    lines[number - 1] = line + b"\n"
    path.write_bytes(b"".join(lines))


def open_to_write(path: Path) -> tuple[Genesis, list[Entry]]:
    journal = Journal(path, GENESIS)
    journal.close()
    return journal.genesis, journal.entries


BOTH_WAYS = pytest.mark.parametrize("open_it", [read, open_to_write])
Open = Callable[[Path], tuple[Genesis, list[Entry]]]


class TestJournal:
    def test_a_new_journal_holds_its_genesis_and_no_blocks(self, tmp_path: Path) -> None:
        path = tmp_path / "new"
        Journal(path, GENESIS).close()
        assert read(path) == (GENESIS, [])

    def test_makes_its_folder(self, tmp_path: Path) -> None:
        Journal(tmp_path / "a" / "b" / "journal", GENESIS).close()
        assert (tmp_path / "a" / "b" / "journal").exists()

    @BOTH_WAYS
    def test_what_was_appended_is_read(self, path: Path, open_it: Open) -> None:
        assert open_it(path) == (GENESIS, ENTRIES)

    def test_keeps_the_genesis_that_it_has(self, path: Path) -> None:
        journal = Journal(path, Genesis(8, 1, ()))
        journal.close()
        assert journal.genesis == GENESIS

    def test_goes_on_where_it_ended(self, path: Path) -> None:
        journal = Journal(path, GENESIS)
        journal.append(ENTRIES[0])
        journal.close()
        assert read(path) == (GENESIS, [*ENTRIES, ENTRIES[0]])

    def test_is_one_json_object_on_a_line(self, path: Path) -> None:
        parsed = [json.loads(line) for line in lines_of(path)]
        assert parsed[0] == asdict(GENESIS) | {"funded": list(GENESIS.funded)}
        assert parsed[1:] == [asdict(entry) for entry in ENTRIES]

    def test_a_block_is_flushed_to_the_disk_before_append_returns(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(path, GENESIS)
        seen: list[list[bytes]] = []
        monkeypatch.setattr(os, "fsync", lambda _: seen.append(lines_of(path)))
        journal.append(ENTRIES[0])
        journal.close()
        assert [len(lines) for lines in seen] == [5]


class TestTornLine:
    def test_is_left_out_wherever_it_was_torn(self, path: Path) -> None:
        content = path.read_bytes()
        begin = content[:-1].rfind(b"\n") + 1
        for end in range(begin, len(content)):
            path.write_bytes(content[:end])
            assert read(path) == (GENESIS, ENTRIES[:2]), end
            assert path.read_bytes() == content[:end]

    def test_is_dropped_from_the_file_wherever_it_was_torn(self, path: Path) -> None:
        content = path.read_bytes()
        begin = content[:-1].rfind(b"\n") + 1
        for end in range(begin, len(content)):
            path.write_bytes(content[:end])
            journal = Journal(path, GENESIS)
            journal.append(ENTRIES[2])
            journal.close()
            assert path.read_bytes() == content, end

    def test_a_torn_genesis_begins_anew(self, path: Path) -> None:
        genesis = lines_of(path)[0]
        for end in range(0, len(genesis), 10):
            path.write_bytes(genesis[:end])
            assert open_to_write(path) == (GENESIS, [])

    def test_no_whole_line_is_not_a_journal_to_a_reader(self, path: Path) -> None:
        path.write_bytes(lines_of(path)[0][:-1])
        with pytest.raises(JournalError, match="is empty: not a journal"):
            read(path)


class TestDamage:
    @BOTH_WAYS
    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"{",
            b"5",
            b"null",
            b"[]",
            b'["funded"]',
            b"{}",
            b'"text"',
            b"\xff\xfe",
            b'{"transaction": "0x01", "time": 1}',
            b'{"transaction": "0x01", "time": 1, "block": "0x", "more": 1}',
            b'{"transaction": "0x01", "time": 1, "block": "0x", "funded": 5}',
        ],
    )
    @pytest.mark.parametrize("number", [1, 3, 4])
    def test_names_the_line(self, path: Path, number: int, damage: bytes, open_it: Open) -> None:
        put_line(path, number, damage)
        with pytest.raises(JournalError, match=f"ledger.journal, line {number} is damaged"):
            open_it(path)

    @BOTH_WAYS
    def test_names_another_format(self, path: Path, open_it: Open) -> None:
        put_line(
            path, 1, json.dumps(asdict(GENESIS) | {"format": "flower-chain journal 2"}).encode()
        )
        with pytest.raises(JournalError, match=f"journal 2', but this version reads '{FORMAT}'"):
            open_it(path)

    @BOTH_WAYS
    def test_names_another_format_whose_genesis_has_other_fields(
        self, path: Path, open_it: Open
    ) -> None:
        other: dict[str, Any] = {"format": "flower-chain journal 2", "genesis": {"chain": 1}}
        put_line(path, 1, json.dumps(other).encode())
        with pytest.raises(JournalError, match=f"journal 2', but this version reads '{FORMAT}'"):
            open_it(path)

    def test_a_refused_journal_is_left_as_it_was(self, path: Path) -> None:
        put_line(path, 3, b"{")
        content = path.read_bytes()
        with pytest.raises(JournalError):
            open_to_write(path)
        assert path.read_bytes() == content

    def test_a_refused_journal_is_not_locked(self, path: Path) -> None:
        content = path.read_bytes()
        put_line(path, 3, b"{")
        with pytest.raises(JournalError):
            Journal(path, GENESIS)
        path.write_bytes(content)
        assert open_to_write(path) == (GENESIS, ENTRIES)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match="missing: No such file or directory"):
            read(tmp_path / "missing")


class TestLock:
    def test_another_process_keeps_writers_out_but_not_readers(self, path: Path) -> None:
        command = [sys.executable, "-c", LOCK, str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"open\n"
                with pytest.raises(JournalError, match="is in use by another process"):
                    Journal(path, GENESIS)
                assert read(path) == (GENESIS, ENTRIES)
            finally:
                holder.kill()
        assert open_to_write(path) == (GENESIS, ENTRIES)

    def test_a_second_writer_in_this_process_is_kept_out_too(self, path: Path) -> None:
        journal = Journal(path, GENESIS)
        with pytest.raises(JournalError, match="is in use"):
            Journal(path, GENESIS)
        journal.close()
        assert open_to_write(path) == (GENESIS, ENTRIES)


class TestFullDisk:
    def test_what_follows_a_failed_write_is_not_glued_to_it(self, path: Path) -> None:
        """An append that failed half-way must not cost what is appended later."""
        journal = Journal(path, GENESIS)
        file = journal._file
        journal._file = HalfFull(file)  # type: ignore[assignment]
        with pytest.raises((OSError, JournalError)):
            journal.append(ENTRIES[0])
        journal._file = file
        try:
            journal.append(ENTRIES[1])
        except (OSError, JournalError):
            expected = ENTRIES
        else:
            expected = [*ENTRIES, ENTRIES[1]]
        journal.close()
        assert read(path) == (GENESIS, expected)


class HalfFull:
    """A file on a disk with room for ten more bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        self._file.write(content[:10])
        self._file.flush()
        raise OSError(28, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


FULL = """
import resource, signal, sys
from pathlib import Path
from flower_chain.ledger.journal import Entry, Genesis, Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, share = Path(sys.argv[1]), float(sys.argv[2])
journal = Journal(path, Genesis(1, 1, ()))
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + int(share * 2000), 10**9))
try:
    journal.append(Entry("0x" + "ab" * 1000, 5, "0x" + 64 * "1"))
except OSError:
    journal.close()
    print("refused")
"""


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_a_disk_that_gets_full_within_a_line_leaves_a_journal_that_goes_on(
    path: Path, share: float
) -> None:
    command = [sys.executable, "-c", FULL, str(path), str(share)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"

    assert read(path) == (GENESIS, ENTRIES)
    journal = Journal(path, GENESIS)
    journal.append(ENTRIES[0])
    journal.close()
    assert read(path)[1] == [*ENTRIES, ENTRIES[0]]
