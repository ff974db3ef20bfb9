"""BlockFLow's rounds through Flower's messages, with the real contract."""

import numpy as np
from experiment import Experiment

from flower_chain.rules.blockflow import score
from flower_chain.updates import weighted_mean


def test_the_model_is_the_mean_that_the_scores_weigh(tmp_path):
    experiment = Experiment(tmp_path, 3)
    outcome = experiment.run(rounds=2)
    first = outcome.round
    table = np.array([first.openings[agent].row for agent in range(3)])
    assert tuple(first.overall.values()) == score(table).overall
    trained = [device.trained[0][1] for device in experiment.devices]
    expected = weighted_mean(trained, score(table).overall)
    assert all(np.array_equal(outcome.model(1)[key], expected[key]) for key in expected)
    assert outcome.result is not None
