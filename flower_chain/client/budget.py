"""What a device may still spend of its privacy in a run, and what it spent it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.common import log

from flower_chain import durable, messages
from flower_chain.client.account import device_account, key_file
from flower_chain.client.outbox import Outbox
from flower_chain.client.private import Training
from flower_chain.errors import ConfigError, TaskRefused
from flower_chain.messages import Request
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.accountant import UNITS, Accountant
from flower_chain.privacy.mechanisms import Kind, protect
from flower_chain.privacy.source import Source
from flower_chain.updates import Arrays

MAX_EPSILON = "max-epsilon"
"""In a SuperNode's ``--node-config``: the epsilon that the device may spend in all its runs."""


class Budget:
    """The privacy budget of one device in one run.

    What a round costs and the update that it was paid for are one file beside the device's key,
    written before anything of the update leaves the device: there is none of the two without the
    other, whenever the device is killed. Whoever asks for the round again gets the same update, so
    that no two noises are ever seen for one charge.

    Parameters
    ----------
    folder : Path
        Of this run, beside those of the device's other runs.
    request : Request
    charges : Accountant
    account : str
        The device's.
    most : float
        Epsilon that it may spend in all its runs.
    """

    def __init__(
        self,
        folder: Path,
        request: Request[RecordAndRewardPlan],
        charges: Accountant,
        account: str,
        most: float,
    ) -> None:
        self._folder, self._outbox, self._most = folder, Outbox(folder), most
        self._plan, self._charges, self._version = request.plan, charges, request.task.version
        self._source = Source(self._seed(account))
        self._kept = self._outbox.read()
        self._paid = 0 if self._kept is None else self._kept.rounds
        self.training = Training(self._plan, self._source)

    @classmethod
    @contextmanager
    def of(
        cls, context: Context, request: Request[RecordAndRewardPlan]
    ) -> Iterator["Budget | None"]:
        """The device's budget under the plan, if that has one; nobody else spends of it inside."""
        charges = request.plan.charges
        if charges is None:
            yield None
            return
        most = context.node_config.get(MAX_EPSILON, float("inf"))
        if not isinstance(most, int | float):
            raise ConfigError(
                f"{MAX_EPSILON} = {most!r} in the SuperNode's --node-config: it must be a number"
            )
        account = device_account(context).address
        runs = Path(f"{key_file(context)}.budget")
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not the contract: another run may have the same one, on a chain that was made anew.
        folder = runs / request.plan.digest.hex()
        with durable.alone(runs / "lock"):
            yield cls(folder, request, charges, account, float(most))

    @property
    def spent(self) -> int:
        """What the device has spent with the present round, in millionths of epsilon."""
        return self._charges.spent(self._paid + 1)

    def sent_before(self) -> RecordDict | None:
        """What the device sent for the version that is asked for, if it has.

        Raises
        ------
        TaskRefused
            If the budget does not pay another round, or the round is before the last one paid.
        """
        if self._kept is not None and self._kept.version >= self._version:
            if self._kept.version == self._version:
                return self._kept.content
            raise TaskRefused(f"version {self._version}: {self._kept.version} was paid for already")
        self._check(self.spent, self._plan.budget, "the plan's budget")
        self._check(self.spent + self._elsewhere(), int(min(self._most, 1e12) * UNITS), MAX_EPSILON)
        return None

    def protect(self, update: Arrays) -> Arrays:
        """The update as it may leave the device.

        Raises
        ------
        TaskRefused
            If the plan wants noise in the training, and that was not
            :func:`flower_chain.private`.
        """
        if self._plan.privacy != Kind.DP_SGD:
            kind, clip, noise = Kind(self._plan.privacy), self._plan.clip, self._plan.noise
            return protect(update, kind, clip, noise, self._source)
        if self.training.steps is None:
            raise TaskRefused(
                "the plan says privacy = 'dp-sgd', but train() did not use flower_chain.private"
            )
        return update

    def keep(self, sealed: bytes, content: RecordDict) -> None:
        """Pay for the round and keep what it was paid for; only then may it leave the device."""
        self._outbox.write(sealed, content, self._paid + 1)

    def _seed(self, account: str) -> str | None:
        seed = self._plan.noise_seed
        if seed < 0:
            return None
        log(WARNING, "The plan has noise drawn from the seed %d: it is NOT PRIVATE.", seed)
        return f"{seed} {account} {self._version}"

    def _check(self, spent: int, budget: int, name: str) -> None:
        if spent > budget:
            raise TaskRefused(
                f"{name} of epsilon {budget / UNITS:g} does not pay another round: with it the "
                f"device would have spent {spent / UNITS:g}"
            )

    def _elsewhere(self) -> int:
        """What the device has spent in its other runs: for a sum of deltas, epsilons add up."""
        folders = [path for path in self._folder.parent.iterdir() if path.is_dir()]
        others = [Outbox(path).read() for path in folders if path != self._folder]
        return sum(
            messages.read_contribution(kept.content)[0].contribution.spent
            for kept in others
            if kept is not None
        )
