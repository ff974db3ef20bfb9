"""The device."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch.optim import SGD

import flower_chain
from digits.data import Examples, load, partition
from digits.model import Net, batches, predict, probabilities, scores, train_one_epoch


def classes(context: Context) -> list[int]:
    """The classes that the device holds: those of a twentieth of its data at least."""
    counts = np.bincount(_data(context).y)
    return np.flatnonzero(counts * 20 >= counts.sum()).tolist()


app = flower_chain.ClientApp(classes=classes, predict=predict)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on the device's data."""
    config, data = context.run_config, _data(context)
    net = _net(message, data)
    optimizer = SGD(net.parameters(), lr=float(config["learning-rate"]))
    loader = batches(data, int(config["batch-size"]))
    # Does nothing unless chain.dp = "dp-sgd".
    net, optimizer, loader = flower_chain.private(net, optimizer, loader)
    validation = flower_chain.Validation(lambda x: probabilities(net, x))
    for _ in range(int(config["local-epochs"])):
        loss = train_one_epoch(net, optimizer, loader)
        validation.measure()
    metrics = MetricRecord({"num-examples": len(data), "train-loss": loss})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on the device's data, or on those that nobody trains on."""
    config = context.run_config
    data = load(str(config["data"])).test if config["evaluate-on"] == "test" else _data(context)
    metrics = MetricRecord({"num-examples": len(data), **scores(_net(message, data), data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _data(context: Context) -> Examples:
    return partition(context.run_config, int(context.node_config["partition-id"]))


def _net(message: Message, data: Examples) -> Net:
    net = Net(data.x[0].size)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net
