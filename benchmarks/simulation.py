"""Flower's own simulation, as `apps/simulate` starts it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

Config = dict[str, str | int | float | bool]

ROOT = Path(__file__).resolve().parents[1]


def simulate(app: Path, devices: int, config: Config) -> None:
    """Run an app on so many devices; it may import what is beside this file.

    Raises
    ------
    RuntimeError
        If the run failed; holds what it printed.
    """
    paths = [str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(filter(None, paths)),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as settings:
        settings.writelines(f"{key} = {_toml(value)}\n" for key, value in config.items())
        settings.flush()
        command = [ROOT / "apps/simulate", app, "--run-config", settings.name]
        command += ["--federation-config", f"num-supernodes={devices} client-resources-num-cpus=1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{app} failed:\n{done.stdout}\n{done.stderr}")


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
