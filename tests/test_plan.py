import base64
import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from golden_seal import RSA_READER
from hypothesis import given
from hypothesis import strategies as st
from tasks import a_plan, a_private_plan

from flower_chain.errors import ConfigError, FormatError
from flower_chain.keys import address_of, public_key
from flower_chain.plan import BlockFlowPlan, Plan, RecordAndRewardPlan
from flower_chain.records import PPM, Contribution
from flower_chain.rules.record_and_reward import Rule
from flower_chain.updates import Format

PLAN = a_plan()
share = st.integers(0, PPM)
plans = st.builds(
    a_plan,
    run=st.text(),
    rule=st.sampled_from(Rule),
    threshold_ppm=share,
    rate=st.integers(0, 2**64 - 1),
    max_data_cost=st.integers(1, 2**32 - 1),
    learning_rate=st.floats(0, 1, exclude_min=True),
    aggregation=st.sampled_from(["mean", "inner"]),
    inner=st.text(),
)


@given(plans)
def test_a_plan_comes_back_from_its_text(plan: RecordAndRewardPlan) -> None:
    assert RecordAndRewardPlan.from_json(plan.to_json()) == plan


@given(plans, plans)
def test_two_plans_have_the_same_digest_only_if_they_are_the_same(
    one: RecordAndRewardPlan, other: RecordAndRewardPlan
) -> None:
    assert (one.digest == other.digest) is (one == other)


def test_every_term_counts_for_the_digest() -> None:
    others: dict[str, Any] = {
        "run": "another",
        "rule": Rule.TREND,
        "aggregation": "inner",
        "inner": "Krum",
        "learning_rate": 0.5,
        "validation_digest": "cd" * 32,
        "clip": 0.5,
        "noise": 0.5,
        "accountant": "prv",
        "delta": 1e-6,
        "sample_rate": 0.5,
        "cipher_key": "AAAA",
        "key_holder": "0x1",
        "value_range": 0.5,
    }
    plan = a_private_plan("dp-sgd")
    numbers = {
        f.name: getattr(plan, f.name) + 1 for f in fields(RecordAndRewardPlan) if f.type is int
    }
    changed = [replace(plan, **{name: value}) for name, value in (others | numbers).items()]
    digests = {other.digest for other in (*changed, plan, a_private_plan(), PLAN)}

    assert len(digests) == len(others) + len(numbers) + 3


def test_the_text_has_sorted_keys_and_no_white_space() -> None:
    text = PLAN.to_json()

    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_the_digest_is_that_of_the_terms_however_they_are_written() -> None:
    spaced = json.dumps(json.loads(PLAN.to_json()), indent=2)

    assert RecordAndRewardPlan.from_json(spaced).digest == PLAN.digest


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("threshold_ppm", -1),
        ("threshold_ppm", PPM + 1),
        ("gain_ppm", PPM + 1),
        ("clear_ppm", -1),
        ("harm_ppm", PPM + 1),
        ("least_ppm", 0),
        ("keep_rounds", -1),
        ("rate", -1),
        ("rate", 2**64),
        ("max_data_cost", 0),
        ("max_data_cost", 2**32),
        ("patience_s", 3599),
        ("samples_per_class", 0),
        ("tolerance_ppm", PPM + 1),
        ("aggregation", "median"),
        ("learning_rate", 0.0),
        ("learning_rate", 1.5),
        ("learning_rate", float("nan")),
    ],
)
def test_a_term_out_of_range_is_refused(term: str, value: Any) -> None:
    name = term.removesuffix("_ppm").removesuffix("_s").replace("_", "-")
    with pytest.raises(ConfigError, match=name):
        a_plan(**{term: value})


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("threshold_ppm", 0),
        ("threshold_ppm", PPM),
        ("rate", 0),
        ("rate", 2**64 - 1),
        ("max_data_cost", 2**32 - 1),
        ("patience_s", 3600),
        ("learning_rate", 1),
    ],
)
def test_a_term_at_the_end_of_its_range_is_not_refused(term: str, value: Any) -> None:
    assert getattr(a_plan(**{term: value}), term) == value


def test_a_reader_that_is_listed_twice_is_refused() -> None:
    key = public_key(Account.create()).hex()
    with pytest.raises(ConfigError, match="one of the 2 keys is listed twice"):
        a_plan(readers=f"{key} {key.upper()}")


def test_readers_may_have_rsa_keys() -> None:
    keys = [public_key(Account.create()), RSA_READER.public_key]
    assert a_plan(readers=" ".join(key.hex() for key in keys)).reader_keys == keys


def test_an_rsa_key_that_is_listed_twice_is_refused() -> None:
    key = RSA_READER.public_key.hex()
    with pytest.raises(ConfigError, match="one of the 2 keys is listed twice"):
        a_plan(readers=f"{key} {key}")


def edited(**terms: Any) -> str:
    values = json.loads(PLAN.to_json()) | terms
    return json.dumps({name: value for name, value in values.items() if value != "gone"})


@pytest.mark.parametrize("text", ["", "{", "1", "[]", "null", "{}", '"plan"'])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a plan"):
        RecordAndRewardPlan.from_json(text)


NESTED = """
import flower_chain
from flower_chain.errors import FormatError
from flower_chain.plan import RecordAndRewardPlan
try:
    RecordAndRewardPlan.from_json("[" * 100_000)
except FormatError:
    print("refused")
"""


def test_a_deeply_nested_text_is_refused() -> None:
    """In a process of its own: it could be the end of it."""
    done = subprocess.run(
        [sys.executable, "-c", NESTED], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout.strip()) == (0, "refused")


@pytest.mark.parametrize(
    "term", [field.name for field in fields(RecordAndRewardPlan) if field.name != "scheme"]
)
def test_a_plan_without_one_of_its_terms_is_refused(term: str) -> None:
    with pytest.raises(FormatError, match="not a plan"):
        RecordAndRewardPlan.from_json(edited(**{term: "gone"}))


@pytest.mark.parametrize(
    "terms",
    [
        {"more": 1},
        {"rule": "coin"},
        {"rule": 0},
        {"model": "{}"},
        {"model": 5},
        {"rate": "1"},
        {"rate": 2**64},
        {"learning_rate": None},
    ],
)
def test_a_plan_with_a_term_that_is_none_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        RecordAndRewardPlan.from_json(edited(**terms))


@pytest.mark.parametrize(
    "terms", [{"rate": 1.5}, {"run": 5}, {"inner": None}, {"threshold_ppm": 0.5}, {"scheme": 3}]
)
def test_a_plan_with_a_term_of_another_type_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="not a plan"):
        RecordAndRewardPlan.from_json(edited(**terms))


def test_plans_differ_in_what_they_say_but_not_in_their_name():
    one = a_plan()
    assert one.differences(replace(one, run="another")) == []
    assert one.differences(replace(one, rate=7, rule=Rule.TREND)) == [
        ("rule", Rule.GAIN, Rule.TREND),
        ("rate", 10**15, 7),
    ]


def test_plans_for_other_models_differ_in_the_arrays():
    one, two = a_plan(), a_plan(model=Format.of({"bias": np.zeros(3)}))
    found = [(name, str(here), str(there)) for name, here, there in one.differences(two)]
    assert found == [
        ("model: 'bias'", "F32 [10]", "F64 [3]"),
        ("model: 'weight'", "F32 [64, 10]", "None"),
    ]


# --- privacy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("privacy", ["gaussian", "laplace", "dp-sgd"])
def test_a_plan_with_a_privacy_budget_comes_back_from_its_text(privacy: str) -> None:
    plan = a_private_plan(privacy)
    assert RecordAndRewardPlan.from_json(plan.to_json()) == plan
    assert plan.charges is not None
    assert plan.charges.kind == privacy


def test_a_plan_without_privacy_costs_nothing_and_has_no_budget() -> None:
    assert PLAN.charges is None
    with pytest.raises(ConfigError, match="budget = 1: it must be from 0 to 0"):
        a_plan(budget=1)


@pytest.mark.parametrize(
    ("privacy", "term", "value", "why"),
    [
        ("secret", "noise", 1.0, "privacy = 'secret': it must be one of gaussian, laplace, dp-sgd"),
        ("gaussian", "budget", 0, "budget = 0"),
        ("gaussian", "budget", 2**63, "budget = "),
        ("gaussian", "clip", 0.0, "clip = 0.0: it must be positive"),
        ("gaussian", "clip", float("inf"), "clip = inf"),
        ("gaussian", "noise", 0.0, "noise = 0.0: it must be positive"),
        ("gaussian", "noise", float("nan"), "noise = nan"),
        ("gaussian", "accountant", "gdp", "accountant = 'gdp': it must be rdp or prv"),
        ("gaussian", "delta", 0.0, "delta = 0.0"),
        ("gaussian", "delta", 1.0, "delta = 1.0"),
        ("gaussian", "steps", 2, "steps = 2"),
        ("gaussian", "sample_rate", 0.5, "steps = 1: it and the sample rate must be 1 but for"),
        ("laplace", "delta", 1e-5, "delta = 1e-05"),
        ("laplace", "accountant", "rdp", "accountant = 'rdp': it must be pure"),
        ("dp-sgd", "sample_rate", 0.0, "sample-rate = 0.0"),
        ("dp-sgd", "sample_rate", 1.5, "sample-rate = 1.5"),
        ("dp-sgd", "steps", 0, "steps = 0"),
    ],
)
def test_a_term_of_privacy_that_makes_no_sense_is_refused(
    privacy: str, term: str, value: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        a_private_plan(privacy, **{term: value})


def test_whole_numbers_in_the_model_are_refused_with_what_to_do() -> None:
    model = Format.of({"weight": np.zeros(3), "norm.num_batches_tracked": np.array(0)})
    with pytest.raises(ConfigError, match=r"norm\.num_batches_tracked; leave .* use GroupNorm"):
        a_private_plan(model=model)


# --- BlockFLow -----------------------------------------------------------------------------------

KEYS = sorted(
    (public_key(Account.from_key(bytes([n]) * 32)) for n in (1, 2, 3)),
    key=lambda key: address_of(key).lower(),
)


def an_experiment(**terms: Any) -> BlockFlowPlan:
    """Terms of three agents, but for some."""
    default: dict[str, Any] = {
        "run": "0123456789abcdef",
        "model": PLAN.model,
        "inner": "FedAvg",
        "readers": "",
        "keep_rounds": 0,
        "first": "ab" * 32,
        "agents": " ".join(key.hex() for key in KEYS),
        "rounds": 10,
        "quorum": 3,
        "bond": 10**19,
        "stake": 10**18,
        "train_s": 3600,
        "stage_s": 600,
        "auditors": 0,
        "metric": "accuracy",
    }
    return BlockFlowPlan(**(default | terms))


def test_the_plan_of_an_experiment_comes_back_from_its_text() -> None:
    plan = an_experiment()
    assert Plan.from_json(plan.to_json()) == BlockFlowPlan.from_json(plan.to_json()) == plan
    assert plan.accounts == [address_of(key) for key in KEYS]


def test_who_does_not_know_all_lots_can_wait_until_nobody_can_train_any_more() -> None:
    assert an_experiment().seconds == (600, 3600, 600, 600, 1200, 600)
    assert an_experiment(auditors=2).seconds == (600, 3600, 4200, 600, 1200, 600)


def test_a_plan_of_another_scheme_is_refused() -> None:
    with pytest.raises(FormatError, match="a plan of record-and-reward: not a BlockFlowPlan"):
        BlockFlowPlan.from_json(PLAN.to_json())
    with pytest.raises(FormatError, match="a plan of blockflow: not a RecordAndRewardPlan"):
        RecordAndRewardPlan.from_json(an_experiment().to_json())


@pytest.mark.parametrize(
    ("term", "value", "why"),
    [
        ("agents", "", "agents: 0 keys"),
        ("agents", " ".join(key.hex() for key in KEYS[::-1]), "agents: 3 keys, not .* in order"),
        ("agents", f"{KEYS[0].hex()} {KEYS[0].hex()}", "listed twice"),
        ("agents", "abcd", "agents: not a public key"),
        ("agents", RSA_READER.public_key.hex(), "a public key has 64 bytes"),
        ("agents", "xyz", "agents: xyz is not a public key"),
        ("quorum", 0, "quorum = 0"),
        ("quorum", 4, "quorum = 4: it must be from 1 to 3"),
        ("rounds", 0, "rounds = 0"),
        ("bond", 10**19 - 1, "bond = "),
        ("bond", 2**96, "bond = "),
        ("stake", -1, "stake = -1"),
        ("train_s", 0, "train-seconds = 0"),
        ("train_s", 2**31, "train-seconds = "),
        ("stage_s", 2**32, "stage-seconds = "),
        ("auditors", 105, "auditors = 105: it must be from 0 to 104"),
        ("metric", 5, "metric = 5"),
    ],
)
def test_an_experiment_that_no_contract_would_take_is_refused(
    term: str, value: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        an_experiment(**{term: value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
terms = st.dictionaries(
    st.sampled_from([field.name for field in fields(RecordAndRewardPlan)]), json_values, max_size=2
)


@given(st.text() | json_values.map(json.dumps) | terms.map(lambda found: edited(**found)))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        RecordAndRewardPlan.from_json(text)
    except FormatError:
        return


# --- encrypted sums ------------------------------------------------------------------------------

HOLDER = Account.from_key(b"\7" * 32)
ENCRYPTED: dict[str, Any] = {
    "encryption": "paillier",
    "cipher_key": base64.b64encode(b"\xff" * 256).decode(),
    "key_holder": HOLDER.address,
    "least_summed": 3,
    "most_summed": 16,
    "weight_steps": 1,
    "value_range": 1.0,
    "value_bits": 16,
}


def test_a_plan_with_encryption_comes_back_from_its_text() -> None:
    plan = a_plan(**ENCRYPTED)
    assert RecordAndRewardPlan.from_json(plan.to_json()) == plan
    assert plan.public_key == b"\xff" * 256


def test_encryption_changes_the_format_of_an_update_only() -> None:
    plain, encrypted = a_plan(), a_plan(**ENCRYPTED)
    assert plain.update_format == plain.model.of_update()
    (spec,) = encrypted.update_format.specs
    assert (spec.dtype, spec.shape) == ("U8", (7, 512))
    assert encrypted.model == plain.model


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({"encryption": "rot13"}, "encryption = 'rot13'"),
        ({"aggregation": "inner", "inner": "Krum"}, "Krum makes no mean"),
        ({"key_holder": HOLDER.address.lower()}, "key-holder"),
        ({"least_summed": 1}, "encryption-least = 1"),
        ({"least_summed": 17}, "encryption-least = 17"),
        ({"weight_steps": 0}, "steps of a weight"),
        ({"most_summed": 2**24, "weight_steps": 16}, "encryption-most"),
        ({"value_bits": 40}, "bits = 40"),
        ({"value_range": 0.0}, "range = 0.0"),
        ({"readers": public_key(HOLDER).hex()}, "readers lists the key holder"),
    ],
)
def test_a_term_of_encryption_that_can_not_be_used_is_named(
    terms: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        a_plan(**(ENCRYPTED | terms))


def test_a_key_that_is_not_in_base64_is_refused() -> None:
    with pytest.raises(ConfigError, match="the public key of paillier"):
        _ = a_plan(**(ENCRYPTED | {"cipher_key": "???"})).cipher


def test_equal_weights_are_one_and_scores_are_sixteenths() -> None:
    plan = a_plan(**ENCRYPTED)
    assert [w for _, w in plan.weighed([_measured(900_000, 250_000, 50_000)])] == [1]
    steps = replace(plan, weight_steps=16)
    assert [w for _, w in steps.weighed([_measured(900_000, 250_000, 50_000)])] == [12]
    assert [w for _, w in steps.weighed([_measured(900_000, 990_000, 50_000)])] == [1]


def _measured(*errors: int) -> Contribution:
    return Contribution(HOLDER.address, 0, 1, bytes(32), bytes(36), (), errors)
