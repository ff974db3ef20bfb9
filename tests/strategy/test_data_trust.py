"""A data trust's rounds through Flower's messages, with the real contract."""

from contextlib import closing

import numpy as np
from experiment import Task

from flower_chain.ledger.blockflow import Stage
from flower_chain.ledger.data_trust import TaskHistory
from flower_chain.records import TOKEN_UNITS
from flower_chain.run import DataTrustRun
from flower_chain.updates import weighted_mean


def test_workers_are_ranked_and_paid_and_get_their_deposits(tmp_path):
    outcome = Task(tmp_path, 4).run(rounds=2, reward=8.0, places=2)
    history = outcome.history
    assert isinstance(history, TaskHistory)
    assert history.stage is Stage.FINISHED
    for number in range(2):
        earned = history.verdicts[number].earned
        assert list(earned.values()) == [2 * TOKEN_UNITS, 2 * TOKEN_UNITS]
        best = sorted(history.verdicts[number].qualities.values(), reverse=True)[:2]
        assert [history.verdicts[number].qualities[worker] for worker in earned] == best
    with closing(DataTrustRun.open(outcome.path)) as run:
        credited = [run.contract.call("credits", account) for account in run.experiment.agents]
    assert sum(credited) == (8 + 4 * 10) * TOKEN_UNITS
    assert min(credited) >= 10 * TOKEN_UNITS


def test_the_model_is_the_mean_of_the_models(tmp_path):
    task = Task(tmp_path, 3)
    outcome = task.run(rounds=2)
    for number in range(2):
        trained = [device.trained[number][1] for device in task.devices]
        expected = weighted_mean(trained, [1, 1, 1])
        found = outcome.model(number + 1)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
