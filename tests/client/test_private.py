"""DP-SGD in the user's train()."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from local_grid import LocalGrid, Node, delivered
from opacus.validators import ModuleValidator
from scipy import stats
from softmax import Device, fresh, part_of, predict
from tasks import DOMAIN, OWNER, a_plan, a_private_plan, samples, task_for
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import flower_chain
from flower_chain import messages
from flower_chain.client.private import Training, offering
from flower_chain.envelope import open_sealed
from flower_chain.errors import ConfigError, TaskRefused
from flower_chain.privacy.source import Source
from flower_chain.updates import Arrays

PLAN = a_private_plan("dp-sgd", noise=1.0, sample_rate=0.25, steps=4)


class Linear(nn.Module):
    """The tests' softmax regression, for torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(64, 10)), nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def trained(epochs: int = 1, layer: type[nn.Module] | None = None, wrapped: bool = True) -> Any:
    """A train() that uses the helper, or not."""

    def train(message: Message, context: Context) -> Message:
        net = nn.Linear(64, 10) if layer is None else layer()
        arrays = message.content["arrays"].to_numpy_ndarrays()
        with torch.no_grad():
            net.weight.copy_(torch.tensor(arrays[0].T))
            net.bias.copy_(torch.tensor(arrays[1]))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        x, y = (torch.from_numpy(part) for part in part_of(0))
        loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
        if wrapped:
            net, optimizer, loader = flower_chain.private(net, optimizer, loader)
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
        found = net.state_dict()
        assert list(found) == ["weight", "bias"]
        arrays = {"weight": found["weight"].T.contiguous(), "bias": found["bias"]}
        metrics = MetricRecord({"num-examples": len(y), "loss": 1.0})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return train


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Device(0).join(LocalGrid(), tmp_path / "keys")


def ask(node: Node, train: Any, version: int = 0, plan: Any = PLAN) -> tuple[Any, Arrays]:
    app = flower_chain.ClientApp(predict=predict)
    app.train()(train)
    node.app = app
    reply = app(task_for(node, version=version, plan=plan, tested=samples()), node.context)
    signed, sealed = messages.read_contribution(delivered(reply).content)
    assert sealed is not None
    opened = open_sealed(sealed, signed.contribution, DOMAIN, plan.model, OWNER)
    return signed.contribution, opened


def test_a_round_costs_what_the_plan_says(node: Node) -> None:
    assert PLAN.charges is not None
    costs = [ask(node, trained(), version)[0].spent for version in range(2)]
    assert costs == [PLAN.charges.spent(1), PLAN.charges.spent(2)]


def test_the_update_has_the_noise_of_its_steps(node: Node) -> None:
    """Gradients sum up to at most a norm of 1 a record; of four steps the noise is twice one's."""
    plan = a_private_plan("dp-sgd", noise=500.0, sample_rate=0.25, steps=4)
    _, update = ask(node, trained(), plan=plan)
    numbers = np.concatenate([array.reshape(-1) for array in update.values()])
    step = 0.5 * 500.0 / (0.25 * Device(0).size)
    assert stats.kstest(numbers / (2 * step), stats.norm.cdf).pvalue > 1e-6


def test_a_train_that_does_not_use_the_helper_is_refused(node: Node) -> None:
    with pytest.raises(TaskRefused, match=r"did not use flower_chain\.private"):
        ask(node, trained(wrapped=False))


def test_more_steps_than_the_plan_pays_are_refused_before_they_are_taken(node: Node) -> None:
    with pytest.raises(ConfigError, match="step 5 of the training: the plan's dp-steps = 4"):
        ask(node, trained(epochs=2))
    assert ask(node, trained())[0].spent == PLAN.charges.spent(1)  # nothing was paid


def test_under_a_plan_without_dp_sgd_the_helper_does_nothing(node: Node) -> None:
    _, update = ask(node, trained(epochs=3), plan=a_plan())
    assert update["weight"].any()


def test_outside_a_task_the_helper_does_nothing() -> None:
    trio = nn.Linear(2, 2), object(), object()
    assert flower_chain.private(*trio) == trio  # type: ignore[arg-type]


def given(
    model: nn.Module, data: Any = None, plan: Any = PLAN
) -> tuple[nn.Module, Any, DataLoader[Any], Training]:
    training = Training(plan, Source("1"))
    data = TensorDataset(torch.ones(40, 3), torch.zeros(40)) if data is None else data
    with offering(training):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return *flower_chain.private(model, optimizer, DataLoader(data)), training


def test_layers_that_cannot_be_trained_are_named_with_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(2)))
    with pytest.raises(ConfigError, match=r"'1' \(BatchNorm2d\), '2\.0' \(BatchNorm1d\).*fix\(mod"):
        given(model)


def test_a_model_of_opacus_remedy_can_be_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model, *_ = given(ModuleValidator.fix(model))
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_data_without_a_length_are_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([1])

    with pytest.raises(ConfigError, match="draws records by number"):
        given(nn.Linear(3, 1), Stream())


def test_gradients_of_several_batches_in_one_step_are_refused() -> None:
    model, optimizer, loader, _ = given(nn.Linear(3, 1))
    for _, (x, _y) in zip(range(2), loader, strict=False):
        model(x).mean().backward()
    with pytest.raises(ConfigError, match="a step over 2 batches"):
        optimizer.step()


def test_a_record_is_in_a_batch_with_the_plans_probability() -> None:
    data = TensorDataset(torch.arange(2000).float().reshape(-1, 1))
    *_, loader, _ = given(nn.Linear(1, 1), data)
    batches = [batch[0].reshape(-1).tolist() for batch in loader]
    assert len(batches) == 4
    drawn = [record for batch in batches for record in batch]
    assert stats.binomtest(len(drawn), 4 * 2000, 0.25).pvalue > 1e-6
    assert all(len(set(batch)) == len(batch) for batch in batches)


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    plan = a_private_plan("dp-sgd", noise=1.0, sample_rate=1e-4, steps=10**5)
    model, optimizer, loader, training = given(nn.Linear(3, 1), plan=plan)
    x, _ = next(iter(loader))
    assert len(x) == 0
    before = model.state_dict()["weight"].clone()
    optimizer.zero_grad()
    model(x).mean().backward()
    optimizer.step()
    assert training.steps == 1
    assert not torch.equal(model.state_dict()["weight"], before)


def test_the_gradient_of_each_record_is_clipped() -> None:
    plan = a_private_plan("dp-sgd", clip=0.5, noise=1e-9, sample_rate=1.0, steps=1)
    data = TensorDataset(100 * torch.ones(8, 3), torch.zeros(8))
    model, optimizer, loader, _ = given(nn.Linear(3, 1, bias=False), data, plan)
    before = model.state_dict()["weight"].clone()
    for x, _ in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
    step = before - model.state_dict()["weight"]
    assert float(step.norm()) == pytest.approx(0.5, rel=1e-4)  # the mean of eight, each of norm 0.5


def test_the_state_dict_can_be_loaded_again() -> None:
    model, *_ = given(nn.Linear(3, 1))
    model.load_state_dict(nn.Linear(3, 1).state_dict())
    assert not any(key.startswith("_module") for key in model.state_dict())


def test_a_fresh_model_has_the_format_of_the_plan() -> None:
    PLAN.model.check(fresh())


def test_without_opacus_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("flower_chain.privacy.dp_sgd", raising=False)
    monkeypatch.setitem(sys.modules, "flower_chain.privacy.dp_sgd", None)
    with pytest.raises(ConfigError, match=r'opacus can\'t be imported .*"flower-chain\[dp\]"'):
        given(nn.Linear(3, 1))


def test_layers_with_buffers_are_refused() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("seen", torch.zeros(1))

    with pytest.raises(ConfigError, match="DP-SGD can't train Counting"):
        given(Counting())
