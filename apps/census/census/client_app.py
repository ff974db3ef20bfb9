"""The device."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

import flower_chain
from census.data import Examples, partition
from census.model import predict, scores, train
from flower_chain.privacy import Mechanism

app = flower_chain.ClientApp(predict=predict)


@app.train()
def train_on_own_rows(message: Message, context: Context) -> Message:
    """Fit a model to the device's rows: the best one, wherever it starts from."""
    config, data = context.run_config, _data(context)
    alpha, epsilon = float(config["alpha"]), float(config["epsilon"])
    weights = train(data, alpha, epsilon, Mechanism(str(config["mechanism"])))
    arrays = ArrayRecord({"weights": Array(weights.astype(np.float64))})
    metrics = MetricRecord({"num-examples": len(data)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on all of the device's rows."""
    data = _data(context)
    arrays = {key: array.numpy() for key, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": len(data), **scores(arrays, data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _data(context: Context) -> Examples:
    config = context.run_config
    device = int(context.node_config["partition-id"])
    return partition(str(config["data"]), int(config["num-devices"]), device)
