"""The owner of the model."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import flower_chain
from census.data import Examples, load
from census.model import predict, scores

app = ServerApp()


def examiner(data: str = "breast-cancer") -> flower_chain.Examiner:
    """What the owner judges the devices with."""
    held_out = load(data).owner
    return flower_chain.Examiner(held_out.x, held_out.y, predict)


def model(data: str = "breast-cancer") -> ArrayRecord:
    """The first model: nothing is known yet."""
    return ArrayRecord({"weights": Array(np.zeros(load(data).test.x.shape[1]))})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    config = context.run_config
    data, devices = str(config["data"]), int(config["num-devices"])
    test = load(data).test
    fedavg = FedAvg(min_train_nodes=devices, min_available_nodes=devices, fraction_evaluate=0.0)
    strategy = flower_chain.wrap(fedavg, context, examiner(data))
    strategy.start(
        grid,
        model(data),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=lambda _, arrays: _scores(arrays, test),
    )


def _scores(arrays: ArrayRecord, test: Examples) -> MetricRecord:
    return MetricRecord(scores({key: array.numpy() for key, array in arrays.items()}, test))
