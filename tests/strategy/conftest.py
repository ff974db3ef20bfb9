"""A federation in one process, for each test a fresh one."""

from pathlib import Path

import pytest
from federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Four devices that do as they should, and no run yet."""
    return Federation(tmp_path, devices=4)


@pytest.fixture
def trio(tmp_path: Path) -> Federation:
    """Three devices: what a test needs where the last of them does not do as it should."""
    return Federation(tmp_path, devices=3)
