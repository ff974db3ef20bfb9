"""The demo, as a user runs it: real Flower processes, and the command line afterwards."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTY = "7:random-labels 8:flipped-labels 9:noise-images"

pytestmark = pytest.mark.slow


def simulate(home: Path, run_config: str) -> subprocess.CompletedProcess[str]:
    """Run the app on ten simulated devices; `home` takes the place of the user's."""
    command = [ROOT / "apps/simulate", ROOT / "apps/digits", "--run-config", run_config]
    env = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return subprocess.run(
        command, env=env, cwd=home, capture_output=True, text=True, timeout=300, check=False
    )


def flower_chain(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call the command line."""
    command = [Path(sys.executable).parent / "flower-chain", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo; its log is beside it."""
    home = tmp_path_factory.mktemp("demo")
    done = simulate(home, f'chain.run="{home}/run" chain.keys="{home}/keys" faults="{FAULTY}"')
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "log").write_text(done.stdout)
    return home / "run"


@pytest.fixture(scope="module")
def shown(demo: Path) -> dict[str, list[dict[str, object]]]:
    """What `flower-chain show` says of it."""
    return json.loads(flower_chain("show", demo, "--json").stdout)


def test_the_final_accuracy_on_the_test_set_is_at_least_093(demo):
    log = (demo.parent / "log").read_text()
    (final,) = re.findall(r"10: {'accuracy': '([^']+)'}", log)
    assert float(final) >= 0.93


def test_honest_devices_are_accepted_and_faulty_ones_refused_in_nine_of_ten_rounds(shown, demo):
    accounts = {
        number: flower_chain(
            "keys", "show", demo.parent / f"keys/device-{number}.key"
        ).stdout.strip()
        for number in range(10)
    }
    accepted = {device["account"]: device["accepted"] for device in shown["devices"]}
    honest = [accepted[accounts[number]] for number in range(7)]
    faulty = [accepted[accounts[number]] for number in (7, 8, 9)]
    assert min(honest) >= 9
    assert max(faulty) <= 1


def test_honest_devices_are_paid_and_faulty_ones_hardly(shown):
    earned = sorted(int(device["earned"]) for device in shown["devices"])
    assert earned[3] > 10 * earned[2]


def test_everything_can_be_recomputed_with_the_owners_key_and_data(demo):
    done = flower_chain(
        "verify",
        demo,
        "--owner-key",
        demo / "owner.key",
        "--examiner",
        "digits.server_app:examiner",
        "--json",
        cwd=ROOT / "apps/digits",
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["unchecked"] == []
    assert report["checked"]["aggregates"] == 10


def test_an_outsider_is_told_what_was_not_checked(demo):
    report = json.loads(flower_chain("verify", demo, "--json").stdout)
    assert report["verified"]
    assert len(report["unchecked"]) == 4


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ('chain.rule="nonsense"', "ConfigError: rule = 'nonsense'"),
        ("chain.rate=-1.0", "ConfigError: rate = -1.0: it must not be negative"),
        ('chain.owner-key="/no/such/key"', "KeyFileError: there is no key file /no/such/key"),
        ('chain.ledger="http://127.0.0.1:1"', "NodeError: no node answers at http://127.0.0.1:1"),
        (
            'chain.store="http://127.0.0.1:1"',
            "NoConnection: no IPFS node answers at http://127.0.0.1:1 ([Errno 111] Connection "
            "refused): start one there, with `ipfs daemon`",
        ),
    ],
)
def test_a_wrong_setting_ends_the_run_with_one_line(tmp_path, setting, line):
    done = simulate(tmp_path, f'chain.run="{tmp_path}/run" {setting}')
    assert done.returncode == 1
    assert line in done.stdout
    assert "Traceback" not in done.stdout


def test_a_run_goes_over_ipfs(tmp_path, ipfs_nodes):
    near, far = ipfs_nodes
    config = f'chain.run="{tmp_path}/run" chain.store="{near.url}" chain.keep-rounds=1'
    done = simulate(tmp_path, f"{config} chain.timeout=300 num-server-rounds=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "run/store").exists()

    listed = flower_chain("store", "ls", tmp_path / "run").stdout
    assert listed.count(" here ") == 1 + 10 + 1
    assert listed.count(" removed ") == 1 + 10
    verified = flower_chain("verify", tmp_path / "run", "--store", far.url)
    assert verified.returncode == 0, verified.stdout
    assert "no longer there" in verified.stdout


@pytest.mark.parametrize("preset", ["csves-trend", "csves-threshold", "record-and-reward"])
def test_a_preset_swaps_the_strategy(tmp_path, preset):
    done = simulate(tmp_path, str(ROOT / f"strategies/{preset}.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / ".flower-chain/runs").iterdir()
    assert flower_chain("verify", run).returncode == 0


def test_the_preset_fedavg_is_plain_flower(tmp_path):
    done = simulate(tmp_path, str(ROOT / "strategies/fedavg.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Starting FedAvg strategy" in done.stdout
    assert not (tmp_path / ".flower-chain").exists()


@pytest.mark.parametrize("preset", ["local-dp", "dp-sgd"])
def test_a_preset_with_a_privacy_budget_keeps_account_of_it(tmp_path, preset):
    done = simulate(tmp_path, str(ROOT / f"strategies/{preset}.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / ".flower-chain/runs").iterdir()

    shown = json.loads(flower_chain("show", run, "--json").stdout)
    spent = [device["spent"] for device in shown["devices"]]
    assert len(spent) == 10
    assert 4_000_000 < min(spent) <= max(spent) <= shown["budget"] == 8_000_000
    verified = json.loads(flower_chain("verify", run, "--json").stdout)
    assert verified["checked"]["privacy charges"] == 100, verified
    assert "epsilon spent of 8" in flower_chain("show", run).stdout
