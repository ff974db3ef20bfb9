"""Runs that keep the models and updates of their last rounds only."""

from pathlib import Path

import pytest
from experiment import Experiment, Task
from federation import OWNER, Federation, Outcome
from softmax import arrays_in, examiner

from flower_chain.errors import ConfigError, Unverified
from flower_chain.run import RecordAndRewardRun, open_run
from flower_chain.updates import pack
from flower_chain.verify import Report, verify


def rounds_stored(outcome: Outcome) -> list[int]:
    """Those of which the store has anything; all of it, in order."""
    held = outcome.run.store.stored()
    assert held.keys() <= {content.cid for content in outcome.run.contents()}
    return [content.round for content in outcome.run.contents() if content.cid in held]


def report_of(outcome: Outcome) -> Report:
    """What an auditor with the owner's key and data finds."""
    *_, report = verify(outcome.run, OWNER, examiner())
    return report


def test_all_rounds_are_kept_if_nothing_is_said(trio: Federation) -> None:
    outcome = trio.run(rounds=3)

    assert rounds_stored(outcome) == [0] * 4 + [1] * 4 + [2] * 4 + [3]


@pytest.mark.parametrize(("keep", "first"), [(1, 3), (2, 2), (4, 0), (9, 0)])
def test_only_the_last_rounds_are_kept(trio: Federation, keep: int, first: int) -> None:
    outcome = trio.run(rounds=4, keep_rounds=keep)

    assert outcome.run.kept_from() == first
    assert rounds_stored(outcome) == [r for r in range(first, 4) for _ in range(4)] + [4]


def test_what_is_gone_is_not_checked_and_that_is_said(trio: Federation) -> None:
    outcome = trio.run(rounds=4, keep_rounds=2)

    report = report_of(outcome)
    (gone,) = report.unchecked
    assert gone.startswith("8 models and sealed files of rounds before 2: no longer there")
    assert report.checked["models"] == 3
    assert report.checked["stored updates"] == report.checked["accepted updates"] == 6
    assert report.checked["aggregates"] == 2
    assert report.checked["signatures"] == report.checked["payments"] == 12


def test_an_outsider_without_a_key_is_told_the_same(trio: Federation) -> None:
    *_, report = verify(trio.run(rounds=2, keep_rounds=1).run)

    assert any("no longer there" in line for line in report.unchecked)


def test_what_somebody_has_kept_longer_is_checked_too(trio: Federation) -> None:
    outcome = trio.run(rounds=2, keep_rounds=1)
    outcome.run.store.put(pack(trio.initial), outcome.run.contents()[0].cid)

    assert report_of(outcome).checked["models"] == 3


@pytest.mark.parametrize("kind", ["model", "sealed update"])
def test_what_is_missing_of_a_round_that_is_kept_fails(trio: Federation, kind: str) -> None:
    outcome = trio.run(rounds=3, keep_rounds=1)
    content = next(each for each in outcome.run.kept() if each.kind == kind)
    outcome.run.store.remove(content.cid)

    with pytest.raises(Unverified, match=f"nothing is stored under {content.cid}"):
        report_of(outcome)


def test_a_run_that_keeps_one_round_goes_on_after_its_end(trio: Federation) -> None:
    trio.run(rounds=2, keep_rounds=1)
    outcome = trio.run(rounds=4, keep_rounds=1)

    assert rounds_stored(outcome) == [3] * 4 + [4]
    report_of(outcome)


def test_what_a_killed_server_left_goes_with_the_next_round(trio: Federation) -> None:
    outcome = trio.run(rounds=2, keep_rounds=1)
    outcome.run.store.put(b"of an update that nobody recorded")

    assert rounds_stored(trio.run(rounds=3, keep_rounds=1)) == [2] * 4 + [3]


def test_how_many_rounds_are_kept_is_a_term_of_the_run(trio: Federation) -> None:
    trio.run(keep_rounds=3)

    with pytest.raises(ConfigError, match=r"keep_rounds is 1, but the run .* began with 3"):
        trio.run(rounds=2, keep_rounds=1)
    assert RecordAndRewardRun.open(Path(trio.path / "run")).plan.keep_rounds == 3


def test_a_negative_number_of_rounds_is_refused(trio: Federation) -> None:
    with pytest.raises(ConfigError, match="keep-rounds = -1: it must not be negative"):
        trio.run(keep_rounds=-1)


# --- agents that judge each other ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Experiment, Task])
def test_agents_models_of_old_rounds_go_too(tmp_path: Path, kind: type[Experiment]) -> None:
    experiment = kind(tmp_path, 3)
    outcome = experiment.run(rounds=3, keep_rounds=1)

    run = open_run(outcome.path)
    assert run.kept_from() == 2
    assert run.store.stored().keys() == {content.cid for content in run.kept()}
    assert [content.round for content in run.kept()] == [2] * 4 + [3]
    *_, report = verify(run, experiment.accounts[0])
    assert report.checked["opened models"] == 3
    assert report.checked["aggregates"] == 1
    assert any("8 models and sealed files of rounds before 2" in line for line in report.unchecked)


@pytest.mark.parametrize("kind", [Experiment, Task])
def test_a_run_without_its_first_model_goes_on(tmp_path: Path, kind: type[Experiment]) -> None:
    experiment = kind(tmp_path, 3)
    outcome = experiment.run(rounds=2, keep_rounds=1)

    assert outcome.result is not None
    again = experiment.run(rounds=2, keep_rounds=1).result
    assert again is not None
    assert pack(arrays_in(again.arrays)) == pack(arrays_in(outcome.result.arrays))
