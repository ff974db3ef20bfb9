from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from federation import Federation
from hypothesis import given
from hypothesis import strategies as st

from flower_chain import BlockFlowSettings, RecordAndRewardSettings
from flower_chain.errors import ConfigError, KeyFileError
from flower_chain.keys import HOME
from flower_chain.strategy.settings import read_accounts
from flower_chain.updates import Format

ONE = Account.from_key(b"\1" * 32).address
OTHER = Account.from_key(b"\2" * 32).address


# --- types and ranges ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", 5),
        ("ledger", None),
        ("enrol", ["0x"]),
        ("pool", "1000"),
        ("pool", True),
        ("rate", None),
        ("rule", 1),
        ("threshold", "0.1"),
        ("max_data_cost", 1.0),
        ("max_data_cost", True),
        ("samples_per_class", "20"),
        ("patience", 0.5),
        ("learning_rate", "1"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} = .*must be of type"):
        RecordAndRewardSettings(**({"run": "runs/one"} | {name: value}))


@pytest.mark.parametrize("name", ["pool", "rate", "threshold", "learning_rate"])
def test_a_whole_number_is_a_float_too(name: str) -> None:
    assert getattr(RecordAndRewardSettings(run="runs/one", **{name: 1}), name) == 1


@pytest.mark.parametrize("name", ["threshold", "gain", "clear", "harm", "least", "tolerance"])
@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf")])
def test_a_share_must_be_in_0_to_1(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .*must be in \[0, 1\]"):
        RecordAndRewardSettings(run="runs/one", **{name: value})


@pytest.mark.parametrize("name", ["pool", "rate"])
@pytest.mark.parametrize("value", [-1.0, -1e-18, float("nan"), float("inf")])
def test_money_must_not_be_negative_or_endless(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} ="):
        RecordAndRewardSettings(run="runs/one", **{name: value})


def test_a_rate_that_the_contract_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rate = 18\.5: it must be below 18\.4"):
        RecordAndRewardSettings(run="runs/one", rate=18.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", ""),
        ("rule", "coin"),
        ("token", "0x12"),
        ("timeout", 0),
        ("timeout", -5),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        RecordAndRewardSettings(**({"run": "runs/one"} | {name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_data_cost", 0),
        ("max_data_cost", 2**32),
        ("samples_per_class", 0),
        ("learning_rate", 0.0),
        ("learning_rate", 1.5),
        ("patience", -1),
        ("least", 0.0),
        ("pool", 2e9),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_before_anything_is_deployed(
    trio: Federation, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        trio.run(**{name: value})
    assert not (trio.path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bond", -1.0),
        ("bond", 2e9),
        ("stake", float("nan")),
        ("quorum", -1),
        ("train_seconds", 0),
        ("stage_seconds", 2**32),
        ("metric", 1),
    ],
)
def test_a_value_that_no_experiment_can_have_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        BlockFlowSettings(**({"run": "runs/one"} | {name: value}))


def test_a_bond_that_does_not_cover_the_stakes_is_refused_before_anything_is_asked() -> None:
    settings = BlockFlowSettings("runs/one", bond=1.0, stake=0.1)
    settings.check_rounds(10)
    with pytest.raises(ConfigError, match=r"bond = 1\.0: it must cover 11 rounds of stake = 0\.1"):
        settings.check_rounds(11)


def test_a_scheme_takes_its_own_settings_from_a_run_config_that_lists_all() -> None:
    config = {"chain.run": "runs/one", "chain.rate": 5.0, "chain.stake": 0.5, "chain.scheme": "x"}
    assert BlockFlowSettings.from_run_config(config, 7) == BlockFlowSettings("runs/one", stake=0.5)


# --- the ledger and the store --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ledger", "store"])
@pytest.mark.parametrize("url", ["https://me:secret@node.example", "http://:secret@n.example/v3"])
def test_a_password_in_the_url_of_a_node_is_refused_and_not_shown(name: str, url: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .*\*\*\*@.*write \$\{{NAME\}}") as told:
        RecordAndRewardSettings(run="runs/one", **{name: url})
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("name", ["ledger", "store"])
@pytest.mark.parametrize("url", ["https://me:${WORD}@node.example", "https://node.example/${KEY}"])
def test_a_secret_from_the_environment_is_not(name: str, url: str) -> None:
    assert getattr(RecordAndRewardSettings(run="runs/one", **{name: url}), name) == url


@pytest.mark.parametrize("place", ["/srv/store", "127.0.0.1:5001", "ipfs://127.0.0.1", "http://"])
def test_a_store_that_is_no_node_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=r"store = .*: it must be the URL of an IPFS node"):
        RecordAndRewardSettings(run="runs/one", store=place)


# --- money ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "units"),
    [(0.001, 10**15), (0.1, 10**17), (1, 10**18), (1000.0, 10**21), (1e-18, 1), (0.3, 3 * 10**17)],
)
def test_tokens_are_exact_in_the_smallest_unit(tokens: float, units: int) -> None:
    assert RecordAndRewardSettings(run="runs/one", pool=tokens).funds.pool == units


def test_the_rate_is_exact_too() -> None:
    plan = RecordAndRewardSettings(run="runs/one", rate=0.001).plan(Format.of({}), "00", "FedAvg")
    assert plan.rate == 10**15


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_decimal_number_of_tokens_is_exact(whole: int, millionths: int) -> None:
    tokens = float(f"{whole}.{millionths % 10**6:06}")

    expected = whole * 10**18 + millionths % 10**6 * 10**12
    assert RecordAndRewardSettings(run="runs/one", pool=tokens).funds.pool == expected


# --- run-config ----------------------------------------------------------------------------------


def test_the_run_config_sets_what_begins_with_chain() -> None:
    config = {"chain.run": "runs/one", "chain.max-data-cost": 7, "lr": 0.1, "chained": True}

    settings = RecordAndRewardSettings.from_run_config(config, 1)

    assert settings == RecordAndRewardSettings(run="runs/one", max_data_cost=7)


@pytest.mark.parametrize("key", ["chain.ratee", "chain.", "chain.max-data-costs"])
def test_an_unknown_setting_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {key} = 1"):
        RecordAndRewardSettings.from_run_config({key: 1}, 1)


@pytest.mark.parametrize("config", [{}, {"chain.run": ""}])
def test_without_a_folder_the_run_has_flowers_number(config: dict[str, Any]) -> None:
    assert RecordAndRewardSettings.from_run_config(config, 77).path == HOME / "runs" / "77"


def test_a_value_of_another_type_in_the_run_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate = 'much'"):
        RecordAndRewardSettings.from_run_config({"chain.run": "runs/one", "chain.rate": "much"}, 1)


def test_the_home_folder_may_be_written_short() -> None:
    assert RecordAndRewardSettings(run="~/runs/one").path == Path.home() / "runs" / "one"


# --- accounts ------------------------------------------------------------------------------------


def test_the_owners_key_is_made_in_the_runs_folder(tmp_path: Path) -> None:
    settings = RecordAndRewardSettings(run=str(tmp_path / "run"))

    assert settings.owner().address == settings.owner().address
    assert (tmp_path / "run" / "owner.key").exists()


def test_a_key_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="there is no key file"):
        RecordAndRewardSettings(run=str(tmp_path), owner_key=str(tmp_path / "owner.key")).owner()


def test_the_tokens_address_becomes_a_checksum_address() -> None:
    assert RecordAndRewardSettings(run="runs/one", token=ONE.lower()).funds.token == ONE


def test_without_a_token_there_is_none() -> None:
    assert RecordAndRewardSettings(run="runs/one").funds.token is None


def test_enrolment_is_open_if_nothing_is_said() -> None:
    assert RecordAndRewardSettings(run="runs/one").allowlist() is None


def test_an_allowlist_is_read(tmp_path: Path) -> None:
    path = tmp_path / "devices.txt"
    path.write_text(f"# two hospitals\n\n{ONE.lower()}  # the first\n  {OTHER}\n")

    assert RecordAndRewardSettings(run="runs/one", enrol=str(path)).allowlist() == [ONE, OTHER]


def test_an_empty_allowlist_is_not_open(tmp_path: Path) -> None:
    path = tmp_path / "devices.txt"
    path.write_text("# nobody yet\n")

    assert RecordAndRewardSettings(run="runs/one", enrol=str(path)).allowlist() == []


def test_a_line_that_is_no_account_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devices.txt"
    path.write_text(f"{ONE}\n0x12\n")

    with pytest.raises(ConfigError, match="line 2: '0x12' is not an address"):
        read_accounts(path)


def test_an_allowlist_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_accounts(tmp_path / "devices.txt")


def test_an_allowlist_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devices.txt"
    path.write_bytes(b"\xff\xfe\xff")

    with pytest.raises(ConfigError, match="enrol"):
        read_accounts(path)
