import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flower_chain.errors import Damaged, FormatError, StoreError, TooLarge
from flower_chain.store import DirectoryStore, cid_of

DATA = b"an update"
CID = cid_of(DATA)

WRITER = """
import os, sys
from pathlib import Path
from flower_chain.store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
while True:
    print(store.put(os.urandom(1_000_000)), flush=True)
"""

# The kernel kills the writer when its file reaches half of the bytes.
DOOMED_WRITER = """
import resource, signal, sys
from pathlib import Path
from flower_chain.store import DirectoryStore
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
DirectoryStore(Path(sys.argv[1])).put(bytes(1_000_000))
"""


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "deep" / "store")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_put_is_a_file_under_its_cid(store: DirectoryStore) -> None:
    assert store.put(DATA) == CID
    assert (store.path / CID).read_bytes() == DATA


def test_another_store_on_the_directory_finds_it(store: DirectoryStore) -> None:
    store.put(DATA)
    assert DirectoryStore(store.path).get(CID) == DATA


def test_putting_again_writes_nothing(store: DirectoryStore) -> None:
    store.put(DATA)
    before = (store.path / CID).stat()
    assert store.put(DATA) == CID
    assert (store.path / CID).stat() == before


def test_changed_bytes_are_not_handed_out(store: DirectoryStore) -> None:
    store.put(DATA)
    (store.path / CID).write_bytes(b"a falsehood")
    with pytest.raises(Damaged, match=cid_of(b"a falsehood")):
        store.get(CID)


def test_putting_again_mends_a_damaged_file(store: DirectoryStore) -> None:
    store.put(DATA)
    (store.path / CID).write_bytes(b"AN UPDATE")
    store.put(DATA)
    assert store.get(CID) == DATA


def test_more_than_the_limit_is_refused(store: DirectoryStore) -> None:
    store.put(DATA)
    assert store.get(CID, limit=len(DATA)) == DATA
    (store.path / CID).write_bytes(b"not even the right bytes")
    with pytest.raises(TooLarge, match="more than the 9 bytes"):
        store.get(CID, limit=len(DATA))


@pytest.mark.parametrize("cid", ["../secret", ".", "", CID.upper()])
def test_only_a_cid_becomes_a_path(store: DirectoryStore, cid: str) -> None:
    with pytest.raises(FormatError):
        store.get(cid)
    with pytest.raises(FormatError):
        cid in store  # noqa: B015


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"directory .*/file/store"):
        DirectoryStore(tmp_path / "file" / "store")


def test_a_directory_that_is_gone_is_named(store: DirectoryStore) -> None:
    store.path.rmdir()
    with pytest.raises(StoreError, match=f"can't store 9 bytes as .*{CID}"):
        store.put(DATA)


def test_something_else_under_the_name_is_named(store: DirectoryStore) -> None:
    (store.path / CID).mkdir()
    with pytest.raises(StoreError, match=f"can't read .*{CID}"):
        store.get(CID)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(
    store: DirectoryStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(StoreError, match="No space left"):
        store.put(DATA)
    assert list(store.path.iterdir()) == []


def test_only_what_has_a_cid_for_a_name_is_the_stores(store: DirectoryStore) -> None:
    store.put(DATA)
    (store.path / "notes.txt").write_text("of somebody")
    assert store.stored() == {CID: len(DATA)}
    assert store.keep_only([]) == [CID]
    assert [path.name for path in store.path.iterdir()] == ["notes.txt"]


def test_what_can_not_be_listed_or_deleted_is_named(store: DirectoryStore) -> None:
    (store.path / CID).mkdir()
    with pytest.raises(StoreError, match=f"can't delete .*{CID}"):
        store.remove(CID)
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match=f"can't read {store.path}"):
        store.stored()


def test_the_leftover_of_a_killed_writer_is_ignored(store: DirectoryStore) -> None:
    leftover = store.path / f".{CID}.0123456789abcdef.partial"
    leftover.write_bytes(DATA[:3])
    assert CID not in store
    assert store.get(store.put(DATA)) == DATA


def test_a_writer_killed_halfway_leaves_nothing_under_the_cid(store: DirectoryStore) -> None:
    command = [sys.executable, "-c", DOOMED_WRITER, str(store.path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGXFSZ
    assert [path.stat().st_size for path in store.path.iterdir()] == [500_000]
    assert cid_of(bytes(1_000_000)) not in store


def test_writers_killed_at_any_moment_leave_only_whole_files(store: DirectoryStore) -> None:
    command = [sys.executable, "-c", WRITER, str(store.path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    announced = [writer.stdout.readline() for writer in writers if writer.stdout]
    for writer in writers:
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
        announced += writer.communicate()[0].splitlines()
    stored = [path.name for path in store.path.iterdir() if not path.name.startswith(".")]
    assert all(len(store.get(cid)) == 1_000_000 for cid in stored)
    assert {cid.strip() for cid in announced} <= set(stored)
