"""The owner of the model."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import flower_chain
from digits.data import Examples, load
from digits.model import Net, predict

app = ServerApp()


def examiner(data: str = "digits") -> flower_chain.Examiner:
    """What the owner judges the devices with."""
    held_out = load(data).owner
    return flower_chain.Examiner(held_out.x, held_out.y, predict)


def model(data: str = "digits") -> ArrayRecord:
    """The first model, always the same."""
    torch.manual_seed(0)
    return ArrayRecord(Net(load(data).test.x[0].size).state_dict())


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
        evaluate_fn=lambda _, arrays: _accuracy(arrays, test),
    )


def _accuracy(arrays: ArrayRecord, test: Examples) -> MetricRecord:
    found = predict({key: array.numpy() for key, array in arrays.items()}, test.x).argmax(1)
    return MetricRecord({"accuracy": float((found == test.y).mean())})
