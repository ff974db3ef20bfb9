"""The presets of encrypted sums through real Flower processes, one more of them for the key."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODES = "num-supernodes=11 client-resources-num-cpus=1"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("preset", ["paillier", "ckks"])
def test_a_preset_of_encrypted_sums_learns_and_is_verified(tmp_path: Path, preset: str) -> None:
    config = ROOT / f"strategies/{preset}.toml"
    command = [ROOT / "apps/simulate", ROOT / "apps/digits", "--run-config", str(config)]
    env = {"HOME": str(tmp_path), "PATH": f"{BIN}:/usr/bin:/bin"}
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    done = subprocess.run(
        [*command, "--federation-config", NODES],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / ".flower-chain/runs").iterdir()

    words = ["verify", run, "--owner-key", run / "owner.key", "--json"]
    words += ["--examiner", "digits.server_app:examiner"]
    verified = subprocess.run(
        [BIN / "flower-chain", *words],
        cwd=ROOT / "apps/digits",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    report = json.loads(verified.stdout)
    assert verified.returncode == 0, report
    assert report["checked"]["encrypted sums"] == report["checked"]["aggregates"] == 10
    assert report["checked"]["signed sums"] == 10
    final = done.stdout.split("10: {'accuracy': '")[1].split("'")[0]
    assert float(final) >= 0.93
