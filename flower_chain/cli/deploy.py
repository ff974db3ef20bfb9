"""flower-chain deploy: begin a run before its server starts."""

import sys
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from eth_account.signers.local import LocalAccount
from rich.table import Table

from flower_chain.cli.arguments import DryRun, examiner_of, made_by
from flower_chain.cli.money import in_full
from flower_chain.cli.reporting import console, reporting
from flower_chain.errors import ConfigError
from flower_chain.ledger import Contract, JsonRpcLedger
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.accountant import UNITS
from flower_chain.records import PPM
from flower_chain.run import EMBEDDED, Funds, RecordAndRewardRun
from flower_chain.strategy.settings import RecordAndRewardSettings
from flower_chain.updates import Arrays, Format

DEPLOYED = "record-and-reward"
NOT_DEPLOYED = {
    "fedavg": "it needs no contracts",
    "blockflow": "its server makes the contract, when it has heard who takes part",
    "data-trust": "its server makes the contract, when it has heard who takes part",
}
"""Why this command does not begin a run of another scheme."""


def deploy(
    run_config: Annotated[Path, typer.Option(help="The TOML file that `flwr run` will get.")],
    model: Annotated[
        str,
        typer.Option(
            help="MODULE:FUNCTION that returns the first model: an ArrayRecord, a state_dict, or "
            "NumPy arrays by key."
        ),
    ],
    examiner: Annotated[
        str, typer.Option(help="MODULE:FUNCTION that returns the owner's Examiner.")
    ],
    app: Annotated[
        Path,
        typer.Argument(metavar="[APP]", help="The Flower app's folder; modules are found there."),
    ] = Path(),
    inner: Annotated[
        str,
        typer.Option(help="Class of the strategy that the ServerApp wraps; MODULE.CLASS if yours."),
    ] = "FedAvg",
    dry_run: DryRun = False,
) -> None:
    """Begin a run: create its contracts, publish the first model, fill the pool, enrol the devices.

    APP is the folder of the Flower app, where MODULE is looked for too. Its ServerApp goes on with
    the run if it is started with the same run-config.
    """
    with reporting():
        sys.path.insert(0, str(app.resolve()))
        settings = _settings(app, run_config)
        arrays, judge = _arrays(model), examiner_of(examiner)
        plan = settings.plan(Format.of(arrays), judge.digest, inner)
        beginning = Beginning(settings, plan, settings.owner(), arrays, judge.error(arrays))
        console.print(beginning.terms())
        if dry_run:
            console.print("Dry run: nothing was sent.")
            return
        where = settings.path, settings.ledger, settings.funds, settings.store
        with closing(beginning.begin(*where)) as run:
            contract = run.federation.contract.address
            gas = beginning.gas_used(run)
            console.print(f"Done: contract {contract}, {gas:,} gas.", soft_wrap=True)
            console.print(f"{settings.path / 'run.json'} says where all is.", soft_wrap=True)


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Parameters
    ----------
    settings : RecordAndRewardSettings
    plan : RecordAndRewardPlan
    owner : LocalAccount
    model : Arrays
        T_0.
    error_ppm : int
        Its error on the owner's validation data.
    """

    settings: RecordAndRewardSettings
    plan: RecordAndRewardPlan
    owner: LocalAccount
    model: Arrays
    error_ppm: int

    def begin(self, path: Path, where: str, funds: Funds, store: str = "") -> RecordAndRewardRun:
        """Begin the run in the folder `path`, on the ledger `where`."""
        run = RecordAndRewardRun.start(
            path,
            where,
            self.owner,
            self.plan,
            funds,
            self.model,
            lambda _: self.error_ppm,
            self.settings.confirmations,
            store,
        )
        if devices := self.settings.allowlist():
            run.federation.enrol(devices)
        return run

    def rehearse(self) -> int:
        """Begin the run on a ledger that is thrown away; tell the gas, the same on any ledger.

        Of a token that is there already this knows nothing, and makes one.
        """
        with TemporaryDirectory() as folder:
            funds = Funds(self.settings.funds.pool)
            with closing(self.begin(Path(folder), EMBEDDED, funds)) as run:
                return self.gas_used(run)

    def gas_used(self, run: RecordAndRewardRun) -> int:
        """Gas of all that was done to begin `run`."""
        contract, ledger = run.federation.contract, run.token.ledger
        is_new, ours = self.settings.funds.token is None, bytes.fromhex(contract.address[2:])
        logs = ledger.logs(run.token.address, run.token.block if is_new else contract.block)
        # Others use a token that was there; what it says to them may be nothing that we know.
        logs = [log for log in logs if is_new or ours in b"".join(log["topics"])]
        moved = {ledger.receipt(log["transactionHash"].to_0x_hex()) for log in logs}
        receipts = moved | {event.receipt for event in contract.events()}
        return sum(receipt.gas_used for receipt in receipts)

    def terms(self) -> Table:
        """What is agreed, who pays, and what it costs."""
        plan, funds, devices = self.plan, self.settings.funds, self.settings.allowlist()
        token = "a new token" if funds.token is None else f"the token {funds.token}"
        open_to = "whoever answers" if devices is None else f"{len(devices)} enrolled"
        lines = {
            "run": self.settings.run,
            "ledger": self._ledger(),
            "store": self.settings.store or str(self.settings.path / "store"),
            "kept": f"the last {plan.keep_rounds} rounds" if plan.keep_rounds else "all rounds",
            "owner": self.owner.address,
            "model": f"{len(self.model)} arrays, error {self.error_ppm / PPM:.4f}",
            "validation data": f"SHA-256 {plan.validation_digest}",
            "strategy": f"{plan.scheme} around {plan.inner}, rule {plan.rule}",
            "privacy": _privacy(plan),
            "paid": f"{in_full(plan.rate)} tokens a data point, for {plan.max_data_cost:,} at most",
            "pool": f"{in_full(funds.pool)} of {token}, from the owner",
            "devices": open_to,
            "readers": f"the owner and {len(plan.reader_keys)} more",
            "gas": f"about {self.rehearse():,}, paid by the owner",
        }
        table = Table(show_header=False)
        for name, value in lines.items():
            table.add_row(name, value)
        return table

    def _ledger(self) -> str:
        """Which it is; ConfigError if the owner lacks what is to go into the pool."""
        where, funds = self.settings.ledger, self.settings.funds
        if where == EMBEDDED:
            return EMBEDDED
        with JsonRpcLedger(where) as ledger:
            if funds.token is not None:
                token = Contract(ledger, funds.token, "RewardToken")
                has = int(token.call("balanceOf", self.owner.address))
                if has < funds.pool:
                    raise ConfigError(
                        f"pool = {in_full(funds.pool)}: the owner has only {in_full(has)} tokens"
                    )
            return f"{ledger}, chain {ledger.chain_id}"


def _settings(app: Path, run_config: Path) -> RecordAndRewardSettings:
    """What the ServerApp of `app` will be told, or ConfigError."""
    project = _read(app / "pyproject.toml") if (app / "pyproject.toml").exists() else {}
    defaults: Any = project
    for key in ("tool", "flwr", "app", "config"):
        defaults = defaults.get(key, {})
    config = flat(defaults) | flat(_read(run_config))
    if not config.get("chain.run"):
        raise ConfigError(f"{run_config} must set chain.run, so that the ServerApp finds the run")
    if (scheme := config.get("chain.scheme", DEPLOYED)) != DEPLOYED:
        raise ConfigError(f"scheme = {scheme!r}: {NOT_DEPLOYED.get(str(scheme), 'there is none')}")
    settings = RecordAndRewardSettings.from_run_config(config, 0)
    if not settings.path.is_absolute():
        raise ConfigError(f"chain.run = {settings.run!r}: the ServerApp needs an absolute path")
    if (settings.path / "run.json").exists():
        raise ConfigError(
            f"{settings.path} holds a run already: start its server, which does what is left to do"
        )
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise ConfigError(f"{path} can't be read: {fault}") from None


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as Flower flattens them."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _arrays(name: str) -> Arrays:
    made = made_by("--model", name)
    if not isinstance(made, Mapping):
        raise ConfigError(f"--model {name}: it returned {type(made).__name__}, not arrays by key")
    return {
        key: value.numpy() if hasattr(value, "numpy") else np.asarray(value)
        for key, value in made.items()
    }


def _privacy(plan: RecordAndRewardPlan) -> str:
    """What devices do to hide their data, and what they may spend."""
    if plan.charges is None:
        return "no noise, and no budget"
    rounds = plan.charges.rounds(plan.budget)
    seed = f"; NOT PRIVATE: from the seed {plan.noise_seed}" if plan.noise_seed >= 0 else ""
    budget = f"epsilon {plan.budget / UNITS:g} at delta {plan.delta:g}"
    return f"{plan.privacy}, {budget}, which pays {rounds} rounds of a device{seed}"
