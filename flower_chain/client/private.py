"""DP-SGD for the user's ``train()``, on the plan's terms."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from flower_chain.errors import ConfigError
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.mechanisms import Kind
from flower_chain.privacy.source import Source

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    Trio = tuple[Module, Optimizer, DataLoader[Any]]


class Training:
    """What the plan wants of one round's training, and what of it was done.

    Parameters
    ----------
    plan : RecordAndRewardPlan
    source : Source

    Attributes
    ----------
    steps : int or None
        Steps taken with noise; None as long as :func:`private` was not asked.
    """

    def __init__(self, plan: RecordAndRewardPlan, source: Source) -> None:
        self.plan, self.source = plan, source
        self.steps: int | None = None

    def count(self) -> None:
        """One step more.

        Raises
        ------
        ConfigError
            If the plan does not pay it.
        """
        self.steps = (self.steps or 0) + 1
        if self.steps > self.plan.steps:
            raise ConfigError(
                f"step {self.steps} of the training: the plan's dp-steps = {self.plan.steps} is "
                "what a round pays for, over all epochs"
            )


_training: ContextVar[Training | None] = ContextVar("flower_chain_training", default=None)


@contextmanager
def offering(training: Training | None) -> Iterator[None]:
    """Let :func:`private` find the plan's terms inside."""
    token = _training.set(training)
    try:
        yield
    finally:
        _training.reset(token)


def private(model: "Module", optimizer: "Optimizer", loader: "DataLoader[Any]") -> "Trio":
    """Have a training hide each record of the device's data, if the plan wants that (DP-SGD).

    In every step the gradient of each record is shortened to the plan's norm, and noise is added
    to their sum (M. Abadi et al., CCS 2016; by opacus). A record is in the batch of a step with the
    plan's probability, whatever batch size the loader had. A batch may be empty.

    Parameters
    ----------
    model : torch.nn.Module
        As it was received. Its loss must be the *mean* over the batch.
    optimizer : torch.optim.Optimizer
        Of the model's parameters.
    loader : torch.utils.data.DataLoader
        Over a data set that has a length.

    Returns
    -------
    model, optimizer, loader
        To train with, instead. The state dict of the model has the keys that it had. Where the plan
        says nothing of DP-SGD, and under a strategy that isn't ours, they are what was given.

    Raises
    ------
    ConfigError
        If a layer can't be trained like this, naming it; if opacus is missing; or, in the training,
        if it takes more steps than the plan says.

    Examples
    --------
    ::

        net, optimizer, loader = flower_chain.private(net, optimizer, loader)
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
    """
    training = _training.get()
    if training is None or training.plan.privacy != Kind.DP_SGD:
        return model, optimizer, loader
    try:
        from flower_chain.privacy import dp_sgd  # noqa: PLC0415 (opacus is an optional extra)
    except ImportError as fault:
        raise ConfigError(
            f"the plan says privacy = 'dp-sgd', but opacus can't be imported ({fault}): "
            'pip install "flower-chain[dp]"'
        ) from None
    training.steps = training.steps or 0
    plan = training.plan
    terms = dp_sgd.Terms(plan.clip, plan.noise, plan.sample_rate)
    return dp_sgd.make_private(model, optimizer, loader, terms, training.source, training.count)
