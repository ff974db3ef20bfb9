"""DP-SGD: noise in every step of a training, which hides each record of the data.

By opacus, but for where its numbers come from: batches and noise are drawn from
:class:`flower_chain.privacy.source.Source`, since opacus's own generator can be predicted (its
``secure_mode`` needs torchcsprng, which no longer installs). Needs the extra ``dp``.

Source: M. Abadi et al.: "Deep Learning with Differential Privacy" (CCS 2016), algorithm 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.data_loader import dtype_safe, shape_safe, wrap_collate_with_empty
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset, Sampler

from flower_chain.errors import ConfigError
from flower_chain.privacy.source import Source


@dataclass(frozen=True)
class Terms:
    """How much noise.

    Parameters
    ----------
    clip : float
        C: the L2 norm that the gradient of a record has at most.
    noise : float
        Standard deviation of the noise on the sum of gradients, as a multiple of C.
    sample_rate : float
        The probability that a record is in the batch of a step.
    """

    clip: float
    noise: float
    sample_rate: float


def make_private(
    model: Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    terms: Terms,
    source: Source,
    count: Callable[[], None],
) -> tuple[Module, Optimizer, DataLoader[Any]]:
    """What to train with instead, so that each step hides each record.

    Parameters
    ----------
    model, optimizer, loader
        Those of the training; the loss must be the mean over the batch.
    terms : Terms
    source : Source
    count : callable
        Called in every step before it changes the model; if it raises, it does not.

    Raises
    ------
    ConfigError
        If a layer mixes the records of a batch or has no gradient for each record; names them. If
        the data have no length.
    """
    model.train()
    _check_layers(model)
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError("DP-SGD draws records by number: the loader's data set must have them")
    records = len(loader.dataset)  # type: ignore[arg-type] # one that can be indexed has it
    options = {"max_grad_norm": terms.clip, "expected_batch_size": records * terms.sample_rate}
    return (
        _Module(model),
        _Optimizer(optimizer, terms.noise * terms.clip, source, count, **options),
        DataLoader(
            loader.dataset,
            batch_sampler=_Poisson(records, terms.sample_rate, source),
            collate_fn=wrap_collate_with_empty(
                collate_fn=loader.collate_fn,
                sample_empty_shapes=[(0, *shape_safe(part)) for part in loader.dataset[0]],
                dtypes=[dtype_safe(part) for part in loader.dataset[0]],
            ),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
        ),
    )


def _check_layers(model: Module) -> None:
    parts = [part for part in model.named_modules() if type(part[1]) in ModuleValidator.VALIDATORS]
    faults = {name: fault for name, part in parts for fault in ModuleValidator.validate(part)}
    if faults:
        named = ", ".join(
            f"{name!r} ({type(model.get_submodule(name)).__name__})" for name in faults
        )
        raise ConfigError(
            f"DP-SGD can't train the layers {named}: {next(iter(faults.values()))} "
            "opacus.validators.ModuleValidator.fix(model) replaces what can be replaced; let it, "
            "where the model is made, on the server too"
        )


class _Module(GradSampleModule):  # type: ignore[misc] # opacus has no types
    """Opacus's, whose state dict has the keys of the model that it wraps."""

    def __init__(self, model: Module) -> None:
        try:
            super().__init__(model)
        except NotImplementedError as fault:
            raise ConfigError(f"DP-SGD can't train {type(model).__name__}: {fault}") from None

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """That of the model itself."""
        return self._module.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Of the model itself."""
        return self._module.load_state_dict(*args, **options)


class _Optimizer(DPOptimizer):  # type: ignore[misc] # opacus has no types
    """Opacus's, whose noise is drawn here."""

    def __init__(
        self,
        optimizer: Optimizer,
        spread: float,
        source: Source,
        count: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(optimizer, noise_multiplier=0.0, **options)
        self._spread, self._source, self._count = spread, source, count

    def add_noise(self) -> None:
        """Add it to the sum of the shortened gradients."""
        if self.accumulated_iterations > 1:
            raise ConfigError(
                f"a step over {self.accumulated_iterations} batches: the plan pays for one each"
            )
        self._count()
        super().add_noise()  # of which its own is none
        for weights in self.params:
            noise = self._spread * self._source.normal(tuple(weights.shape))
            weights.grad += torch.from_numpy(noise).to(weights.grad)


class _Poisson(Sampler[list[int]]):
    """Batches that each record is in with the same probability, whoever else is."""

    def __init__(self, records: int, rate: float, source: Source) -> None:
        self._records, self._rate, self._source = records, rate, source

    def __len__(self) -> int:
        return max(1, round(1 / self._rate))

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            drawn = self._source.uniform(self._records) <= self._rate
            yield drawn.nonzero()[0].tolist()
