"""flower-chain deploy."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import assert_refused
from federation import OWNER, TOKEN, Federation, Outcome, give
from softmax import fresh
from typer.testing import Result

from flower_chain.ledger import JsonRpcLedger
from flower_chain.run import RecordAndRewardRun

Call = Callable[..., Result]
FUNCTIONS = ("--model", "softmax:fresh", "--examiner", "softmax:examiner")


@pytest.fixture(params=["embedded", "node"])
def where(request: pytest.FixtureRequest) -> str:
    """Each ledger."""
    if request.param == "embedded":
        return "embedded"
    url: str = request.getfixturevalue("anvil")
    give(url, OWNER.address)
    return url


def write_config(federation: Federation, where: str = "embedded", **more: object) -> Path:
    """A run-config for it, with its owner and all its devices."""
    federation.strategy()  # writes the owner's key
    (federation.path / "devices.txt").write_text("\n".join(federation.accounts))
    settings = {
        "run": str(federation.path / "run"),
        "ledger": where,
        "owner-key": str(federation.path / "owner.key"),
        "enrol": str(federation.path / "devices.txt"),
        "pool": 12.5,
        **more,
    }
    file = federation.path / "federation.toml"
    file.write_text("\n".join(f"chain.{key} = {json.dumps(v)}" for key, v in settings.items()))
    return file


def test_the_server_goes_on_with_what_was_deployed(call, tmp_path, where):
    federation = Federation(tmp_path, devices=3)
    file = write_config(federation, where)
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
    assert done.exit_code == 0, done.output
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        contract = run.pointers.contract
        assert run.federation.version == 0
        assert run.federation.pool == 25 * TOKEN // 2
        assert all(run.federation.is_enrolled(account) for account in federation.accounts)
    assert contract in done.output
    outcome: Outcome = federation.run(
        rounds=1, ledger=where, enrol=str(tmp_path / "devices.txt"), pool=12.5
    )
    assert outcome.run.pointers.contract == contract
    assert len(outcome.accepted()) == 3
    outcome.verify()


def test_a_dry_run_tells_terms_and_gas_and_leaves_nothing(call, tmp_path, where):
    federation = Federation(tmp_path, devices=3)
    file = write_config(federation, where)
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "Dry run: nothing was sent." in done.output
    for told in (OWNER.address, "12.5 of a new token", "3 enrolled", "rule gain"):
        assert told in done.output
    assert not (tmp_path / "run").exists()


def test_the_gas_told_beforehand_is_the_gas_used(call, tmp_path, where):
    file = write_config(Federation(tmp_path, devices=3), where)
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
    (told,) = re.findall(r"about ([\d,]+), paid by the owner", done.output)
    (used,) = re.findall(r"Done: contract \w+, ([\d,]+) gas", done.output)
    assert abs(in_gas(told) - in_gas(used)) < 1000


def in_gas(text: str) -> int:
    """A number with commas."""
    return int(text.replace(",", ""))


def test_the_app_tells_what_the_run_config_leaves_out(call, tmp_path):
    file = write_config(Federation(tmp_path, devices=3))
    (tmp_path / "pyproject.toml").write_text('[tool.flwr.app.config]\nchain.rule = "trend"\n')
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS, "--dry-run")
    assert "rule trend" in done.output


def test_a_folder_with_a_run_is_left_alone(call, tmp_path):
    file = write_config(Federation(tmp_path, devices=3))
    assert call("deploy", tmp_path, "--run-config", file, *FUNCTIONS).exit_code == 0
    again = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
    assert_refused(again, "ConfigError", "holds a run already")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"run": ""}, "must set chain.run"),
        ({"run": "runs/here"}, "chain.run = 'runs/here': the ServerApp needs an absolute path"),
        ({"scheme": "fedavg"}, "needs no contracts"),
        ({"scheme": "blockflow"}, "its server makes the contract, when it has heard who takes"),
        ({"encryption": "paillier"}, "the server begins the run when its holder is there"),
        ({"scheme": "ponzi"}, "scheme = 'ponzi': there is none"),
        ({"rule": "nonsense"}, "nonsense"),
        ({"ledger": "http://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"owner-key": "/no/such/key"}, "there is no key file /no/such/key"),
        ({"enrol": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_what_can_not_be_used_is_told_in_one_line(call, tmp_path, settings, why):
    file = write_config(Federation(tmp_path, devices=3), **settings)
    assert_refused(call("deploy", tmp_path, "--run-config", file, *FUNCTIONS), why)


def test_open_enrolment_is_told_and_enrols_nobody(call, tmp_path):
    federation = Federation(tmp_path, devices=3)
    file = write_config(federation, enrol="open")
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
    assert "whoever answers" in done.output
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        assert not any(run.federation.is_enrolled(account) for account in federation.accounts)


def test_a_token_that_is_there_is_not_made_and_only_what_fills_the_pool_costs_gas(
    call, tmp_path, anvil, owner
):
    give(anvil, OWNER.address)
    with JsonRpcLedger(anvil) as ledger:
        token = ledger.deploy(owner, "RewardToken", 100 * TOKEN)
        file = write_config(Federation(tmp_path, devices=3), anvil, token=token.address)
        deploy = ("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
        token.transact(owner, "transfer", OWNER.address, 12 * TOKEN)
        poor = call(*deploy)
        assert_refused(poor, "ConfigError", "pool = 12.5: the owner has only 12 tokens")
        assert not (tmp_path / "run").exists()

        token.transact(owner, "transfer", OWNER.address, TOKEN)
        done = call(*deploy)
        assert done.exit_code == 0, done.output
        assert f"12.5 of the token {token.address}" in done.output
        (told,) = re.findall(r"about ([\d,]+), paid by the owner", done.output)
        (used,) = re.findall(r"Done: contract \w+, ([\d,]+) gas", done.output)
        assert abs(in_gas(told) - in_gas(used)) < 1000
        assert token.call("balanceOf", OWNER.address) == TOKEN // 2


def test_an_owner_that_is_a_device_is_told_before_anything_is_sent(call, tmp_path, anvil):
    give(anvil, OWNER.address)
    file = write_config(Federation(tmp_path, devices=3), anvil)
    (tmp_path / "devices.txt").write_text(OWNER.address)
    assert_refused(call("deploy", tmp_path, "--run-config", file, *FUNCTIONS), OWNER.address)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["softmax:examiner", "softmax:nosuch", "nosuch:fresh"])
def test_a_model_that_is_none_is_told(call, tmp_path, model):
    file = write_config(Federation(tmp_path, devices=3))
    functions = ("--model", model, *FUNCTIONS[2:])
    done = call("deploy", tmp_path, "--run-config", file, *functions)
    assert_refused(done, "ConfigError", f"--model {model}")


def test_a_run_config_that_is_not_there_is_told(call, tmp_path):
    done = call("deploy", tmp_path, "--run-config", tmp_path / "no.toml", *FUNCTIONS)
    assert_refused(done, "ConfigError", "no.toml")


def test_the_model_may_be_arrays_as_flower_has_them(call, tmp_path):
    file = write_config(Federation(tmp_path, devices=3))
    (tmp_path / "as_flower.py").write_text(
        "from softmax import fresh, record\n\n\ndef model():\n    return record(fresh())\n"
    )
    functions = ("--model", "as_flower:model", *FUNCTIONS[2:])
    done = call("deploy", tmp_path, "--run-config", file, *functions)
    assert done.exit_code == 0, done.output
    with closing(RecordAndRewardRun.open(tmp_path / "run")) as run:
        _, arrays = run.current()
    assert {key: array.shape for key, array in arrays.items()} == {
        key: array.shape for key, array in fresh().items()
    }


def test_a_dry_run_tells_what_devices_may_spend_of_their_privacy(call, tmp_path):
    privacy = {"dp": "laplace", "dp-noise": 2.0, "dp-epsilon": 3.0, "dp-seed": 7}
    file = write_config(Federation(tmp_path, devices=1), **privacy)
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS, "--dry-run")
    told = " ".join(re.sub("[│┃|]", " ", done.output).split())
    assert "laplace, epsilon 3 at delta 0, which pays 6 rounds of a device; NOT PRIVATE" in told


def test_a_budget_that_pays_no_round_is_not_deployed(call, tmp_path):
    privacy = {"dp": "laplace", "dp-noise": 0.1, "dp-epsilon": 3.0}
    file = write_config(Federation(tmp_path, devices=1), **privacy)
    done = call("deploy", tmp_path, "--run-config", file, *FUNCTIONS)
    assert_refused(done, "dp-epsilon = 3.0: one round costs 10")
