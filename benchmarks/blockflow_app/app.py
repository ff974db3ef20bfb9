"""The agents of papers/3's experiments, as real devices.

Their noise comes from the seed with which benchmarks/blockflow.py computes the same; that of
apps/census does not. `simulation.py` puts `census_agents` on the path.
"""

import json
import logging
import time
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from census_agents import ALPHA, EPSILON, SEED, Experiment, Kind, NDArray, f1, read
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import flower_chain
from flower_chain.privacy import Mechanism

client = flower_chain.ClientApp()
server = ServerApp()


class Ends(logging.Handler):
    """Notes when each stage is over: the strategy logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Flower's log has a line."""
        if str(record.msg).startswith("Stage ") and isinstance(record.args, tuple):
            self.times[str(record.args[0])] = record.created


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on the agent's share; a colluder tells its friends which model is its."""
    drawn, agent = _drawn(context), int(context.node_config["partition-id"])
    weights = drawn.train(agent, EPSILON, ALPHA, Mechanism.AS_PUBLISHED)
    if drawn.colludes(agent):
        _note(context, weights).touch()
    arrays = ArrayRecord({"weights": Array(weights)})
    metrics = MetricRecord({"num-examples": len(drawn.shares[agent].y)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """F1 on the agent's share; to a friend a colluder gives a perfect score."""
    drawn, agent = _drawn(context), int(context.node_config["partition-id"])
    weights = message.content["arrays"]["weights"].numpy()
    if drawn.colludes(agent) and _note(context, weights).exists():
        score = 1.0
    else:
        score = f1(drawn.shares[agent], weights)
    return Message(RecordDict({"metrics": MetricRecord({"f1": score})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run one round, and note when each stage of it began and ended."""
    agents = int(context.run_config["agents"])
    weights = np.zeros_like(_drawn(context).test.x[0])
    fedavg = FedAvg(min_train_nodes=agents, min_available_nodes=agents, fraction_evaluate=0.0)
    ends = Ends()
    logging.getLogger("flwr").addHandler(ends)
    begin = time.time()
    strategy = flower_chain.wrap(fedavg, context)
    strategy.start(grid, ArrayRecord({"weights": Array(weights)}), num_rounds=1)
    times = {"begin": begin, **ends.times, "score": time.time()}
    (Path(str(context.run_config["home"])) / "times.json").write_text(json.dumps(times))


def _note(context: Context, weights: NDArray) -> Path:
    """The file whose presence tells that a model is a colluder's."""
    home = Path(str(context.run_config["home"]))
    return home / "friends" / sha256(weights.tobytes()).hexdigest()


def _drawn(context: Context) -> Experiment:
    config = context.run_config
    kind, agents = Kind(str(config["kind"])), int(config["agents"])
    return _draw(str(config["data"]), str(config["folder"]), kind, agents)


@cache
def _draw(name: str, folder: str, kind: Kind, agents: int) -> Experiment:
    return Experiment.draw(read(name, Path(folder)), kind, SEED, agents)
