"""What encrypted sums cost: phe one value at a time, packed Paillier, and CKKS.

Each cipher encrypts an update of normally distributed values, adds ten encrypted ones, and decrypts
the sum. To add ten the same ciphertext is taken ten times, which costs the same. phe is timed on a
few values and extrapolated: all of 1.2 million would take hours.
"""

import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import gmpy2
import matplotlib as mpl
import numpy as np
import typer
from gmpy2 import mpz
from phe.paillier import generate_paillier_keypair
from report import Claim, Table, claims_table, write_json
from rich.console import Console

from flower_chain.privacy.ciphers import Terms, cipher_of, new_secret
from flower_chain.updates import Format

mpl.use("Agg")
from matplotlib import pyplot as plt

NDArray = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")

SIZES = (1_000, 50_000, 1_200_000)
TEN = 10
POWERS = 500
TERMS = Terms(1.0, 16, 16)
SPREAD = 0.1
FLOAT = 4
"""Bytes of a float32."""

PHE, CKKS = "phe, one by one", "CKKS"
SOURCE = "issue: privacy"

console = Console()


@dataclass(frozen=True)
class Cost:
    """One cipher and one size, in seconds.

    Parameters
    ----------
    cipher : str
    size : int
        Parameters of the model.
    encrypt, add, decrypt : float
        One update, ten of them, their sum.
    nbytes : int
        Of an encrypted update.
    error : float
        The largest of a value in the mean, where values are within [-1, 1].
    extrapolated : bool
        Whether only a few values were timed.
    """

    cipher: str
    size: int
    encrypt: float
    add: float
    decrypt: float
    nbytes: int
    error: float
    extrapolated: bool = False

    @property
    def ratio(self) -> float:
        """Bytes to those of the float32s."""
        return self.nbytes / (FLOAT * self.size)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what it gives."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def values(size: int) -> NDArray:
    """An update, as one vector."""
    drawn = np.random.default_rng(size).normal(0, SPREAD, size)
    return np.clip(drawn, -1, 1).astype(np.float32)


def measure_phe(bits: int, sample: int, sizes: tuple[int, ...]) -> list[Cost]:
    """A ciphertext for each value, as phe is used; from `sample` of them."""
    public, private = generate_paillier_keypair(n_length=bits)
    some = [float(value) for value in values(sample)]
    encrypt, encrypted = timed(lambda: [public.encrypt(value) for value in some])
    add, sums = timed(lambda: [sum([e] * (TEN - 1), start=e) for e in encrypted])
    decrypt, found = timed(lambda: [private.decrypt(each) / TEN for each in sums])
    error = float(np.abs(np.array(found) - some).max())
    return [
        Cost(
            f"{PHE}, {bits} bit",
            size,
            *(seconds * size / sample for seconds in (encrypt, add, decrypt)),
            nbytes=size * 2 * bits // 8,
            error=error,
            extrapolated=True,
        )
        for size in sizes
    ]


def measure(scheme: str, bits: int, name: str, size: int) -> Cost:
    """One of ours."""
    update = {"w": values(size)}
    secret = new_secret(scheme, bits)
    cipher = cipher_of(scheme, secret.public_key, Format.of(update), TERMS)
    encrypt, encrypted = timed(lambda: cipher.encrypt(update))
    add, total = timed(lambda: cipher.add([encrypted] * TEN, [1] * TEN))
    decrypt, found = timed(lambda: secret.decrypt(cipher, total, TEN))
    mean = cipher.mean(found, TEN)["w"]
    error = float(np.abs(mean.astype(np.float64) - update["w"]).max())
    return Cost(name, size, encrypt, add, decrypt, cipher.format.nbytes, error)


def exponentiations(bits: int, size: int) -> float:
    """Seconds that GMP takes for those of a decryption alone, all cores at work.

    Two for each ciphertext, one for each factor of n: exponents of half its bits, modulo a square.
    """
    secret = new_secret("paillier", bits)
    model = Format.of({"w": values(size)})
    rows = cipher_of("paillier", secret.public_key, model, TERMS).format.specs[0].shape[0]
    factor, cores = mpz(int.from_bytes(secret.private_key, "big")), os.cpu_count() or 1
    numbers = [mpz(secrets.randbelow(int(factor**2))) for _ in range(POWERS)]
    with ThreadPoolExecutor(cores) as threads:
        seconds, _ = timed(
            lambda: list(
                threads.map(
                    lambda _: gmpy2.powmod_base_list(numbers, factor - 1, factor**2), range(cores)
                )
            )
        )
    return seconds / (POWERS * cores) * 2 * rows


def cost_table(costs: list[Cost]) -> Table:
    """A row for each cipher and size."""
    columns = (
        "",
        "parameters",
        "encrypt, s",
        "add ten, s",
        "decrypt, s",
        "MB",
        "x float32",
        "error",
    )
    rows = [
        (
            c.cipher + (" (extrapolated)" if c.extrapolated else ""),
            f"{c.size:,}",
            *(f"{seconds:,.3g}" for seconds in (c.encrypt, c.add, c.decrypt)),
            f"{c.nbytes / 1e6:,.2f}",
            f"{c.ratio:,.2f}",
            f"{c.error:.1e}",
        )
        for c in costs
    ]
    note = (
        "Error: the largest in the mean of ten, of values within [-1, 1]. That of Paillier is all "
        "from rounding to 16 bits before; the sum of what was encrypted is exact."
    )
    return Table("Cost", columns, rows, note)


def make_claims(costs: list[Cost], packed: str, bits: int, powers: float) -> list[Claim]:
    """What was to be reached, as far as it was measured.

    Parameters
    ----------
    costs : list of Cost
    packed : str
        The cipher that the claims are about.
    bits : int
        Of its key.
    powers : float
        As :func:`exponentiations` finds it for the largest model.
    """
    found = {(c.cipher, c.size): c for c in costs}
    middle, large = SIZES[1:]
    claims: list[Claim] = []

    def at_most(cipher: str, size: int, name: str, bound: float) -> None:
        if (cost := found.get((cipher, size))) is not None:
            what = f"{cipher}: {name} of {size:,} parameters"
            claims.append(Claim.at_most(what, SOURCE, bound, getattr(cost, name)))

    at_most(packed, middle, "encrypt", 0.5)
    at_most(packed, middle, "decrypt", 1)
    at_most(packed, large, "encrypt", 8)
    at_most(packed, large, "decrypt", 16)
    at_most(packed, large, "ratio", 1.3)
    at_most(CKKS, large, "encrypt", 1)
    at_most(CKKS, large, "error", 1e-6)
    largest = max(size for _, size in found)
    times = found[f"{PHE}, {bits} bit", largest].encrypt / found[packed, largest].encrypt
    what = f"{packed}: times as fast as phe, encryption"
    claims.append(Claim.at_least(what, SOURCE, 1000, times))
    what = f"{packed}: decryption, times its exponentiations alone"
    claims.append(Claim.at_most(what, "bound", 1.25, found[packed, largest].decrypt / powers))
    return claims


def plot(costs: list[Cost], path: Path) -> None:
    """Seconds to encrypt and to decrypt against the size of the model."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axes, stage in zip(panels, ("encrypt", "decrypt"), strict=True):
        for cipher in dict.fromkeys(c.cipher for c in costs):
            some = [c for c in costs if c.cipher == cipher]
            style = "--o" if some[0].extrapolated else "-o"
            label = f"{cipher} (extrapolated)" if some[0].extrapolated else cipher
            seconds = [getattr(c, stage) for c in some]
            axes.loglog([c.size for c in some], seconds, style, label=label, markersize=4)
        axes.set(title=stage, xlabel="parameters")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


HEADING = """# What encrypted sums cost

Made by `python benchmarks/encrypted_sum.py` on {cores} cores. An update of normally distributed
values is encrypted, ten are added, and the sum is decrypted. Sums are of at most 16 updates, values
of 16 bits. The machine's load (1 for each busy core) was {load:.1f} in the end: above {cores} other
jobs ran too, and the seconds are more than they would be. GMP's modular exponentiations, which no
decryption of {largest:,} parameters can do without, take {powers:.1f} s of it here.

![Seconds against parameters](encrypted-sum.png)

How the ciphers work and what they are for: [docs/encryption.md](../../docs/encryption.md).
"""


def main(
    sizes: Annotated[str, typer.Option(help="Parameters of the models.")] = " ".join(
        map(str, SIZES)
    ),
    bits: Annotated[str, typer.Option(help="Of Paillier's keys; claims are about the first.")] = (
        "2048 3072"
    ),
    sample: Annotated[int, typer.Option(min=1, help="Values that phe is timed on.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write rows and claims here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Time the ciphers of encrypted sums."""
    models = tuple(int(size) for size in sizes.split())
    lengths = [int(each) for each in bits.split()]
    runs = [("paillier", n, f"packed Paillier, {n} bit") for n in lengths] + [("ckks", 0, CKKS)]
    with console.status(f"{PHE}, {lengths[0]} bit"):
        costs = measure_phe(lengths[0], sample, models)
    for scheme, n, name in runs:
        for size in models:
            with console.status(f"{name}, {size:,} parameters"):
                costs.append(measure(scheme, n, name, size))
    powers = exponentiations(lengths[0], max(models))
    claims = make_claims(costs, runs[0][2], lengths[0], powers)
    tables = [cost_table(costs), claims_table(claims)]
    for table in tables:
        console.print(table.rich())
    out.mkdir(parents=True, exist_ok=True)
    heading = HEADING.format(
        cores=os.cpu_count(), load=os.getloadavg()[0], largest=max(models), powers=powers
    )
    plot(costs, out / "encrypted-sum.png")
    page = "\n".join([heading, *(table.markdown() for table in tables)])
    (out / "encrypted-sum.md").write_text(page)
    if json is not None:
        write_json(json, [asdict(c) | {"ratio": c.ratio} for c in costs], claims)


if __name__ == "__main__":
    typer.run(main)
