"""An update on its way from a device to the owner: packed, sealed, named by digest and CID."""

from collections.abc import Iterable, Sequence

from flower_chain.errors import Damaged, FormatError, NotStored, SealError, TooLarge
from flower_chain.keys import Reader
from flower_chain.records import Contribution, Domain, Refusal
from flower_chain.store import Store
from flower_chain.store.cid import cid_from_bytes
from flower_chain.store.seal import Kind, seal, sealed_bytes, unseal
from flower_chain.updates import Arrays, Format, check_finite, digest, pack, unpack


class RefusedError(Exception):
    """An update that can't be accepted; tells the reason for the ledger and for people."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def close(
    update: Arrays, readers: Sequence[bytes], domain: Domain, device: str
) -> tuple[bytes, bytes]:
    """Pack and seal an update.

    Parameters
    ----------
    update : Arrays
    readers : sequence of bytes
        Public keys of who may open it: the owner's, and those that the plan names.
    domain : Domain
    device : str
        Account of the device.

    Returns
    -------
    digest : bytes
        SHA-256 of the packed update.
    sealed : bytes
    """
    packed = pack(update)
    name = digest(packed)
    return name, seal(packed, readers, binding(domain, device, name))


def open_sealed(
    sealed: bytes,
    contribution: Contribution,
    domain: Domain,
    layout: Format,
    reader: Reader,
    wrap: bytes | None = None,
) -> Arrays:
    """Open a sealed update and check it against its contribution.

    Parameters
    ----------
    sealed : bytes
    contribution : Contribution
        What the device signed.
    domain : Domain
    layout : Format
        The format of an update: what the plan says.
    reader : Reader
        One of those whom it was sealed for.
    wrap : bytes, optional
        What opens it for another reader.

    Returns
    -------
    Arrays
        The update: finite, and in the format of one.

    Raises
    ------
    RefusedError
        With the reason.
    """
    try:
        packed = unseal(
            sealed,
            reader.key,
            binding(domain, contribution.device, contribution.digest),
            wrap=wrap,
        )
    except SealError as fault:
        raise RefusedError(Refusal.UNSEALABLE, str(fault)) from fault
    if (found := digest(packed)) != contribution.digest:
        raise RefusedError(Refusal.WRONG_DIGEST, f"the update has {found.hex()}")
    return _parse(packed, layout)


def keep(
    store: Store,
    sealed: bytes,
    contribution: Contribution,
    layout: Format,
    others: Iterable[bytes] = (),
) -> None:
    """Store a sealed update that came with its contribution, or RefusedError.

    `others` are the public keys of those that may open it beside the owner.
    """
    limit = size(layout, others)
    if len(sealed) > limit:
        detail = f"{len(sealed)} bytes, but a sealed update has {limit}"
        raise RefusedError(Refusal.OVERSIZE, detail)
    try:
        store.put(sealed, cid_from_bytes(contribution.cid))
    except (Damaged, FormatError) as fault:
        raise RefusedError(Refusal.WRONG_CID, str(fault)) from fault


def fetch(
    store: Store, contribution: Contribution, layout: Format, others: Iterable[bytes] = ()
) -> bytes:
    """A sealed update from the store, or RefusedError; `others` as in :func:`keep`."""
    try:
        return store.get(cid_from_bytes(contribution.cid), size(layout, others))
    except NotStored as fault:
        raise RefusedError(Refusal.NOT_STORED, str(fault)) from fault
    except (Damaged, FormatError) as fault:
        raise RefusedError(Refusal.WRONG_CID, str(fault)) from fault
    except TooLarge as fault:
        raise RefusedError(Refusal.OVERSIZE, str(fault)) from fault


def is_kept(store: Store, contribution: Contribution) -> bool:
    """Whether the store holds something under the contribution's CID."""
    try:
        return cid_from_bytes(contribution.cid) in store
    except FormatError:
        return False


def size(layout: Format, others: Iterable[bytes] = ()) -> int:
    """The size of a sealed update in such a format, in bytes: they all have the same."""
    return sealed_bytes(layout.nbytes, [Kind.ACCOUNT, *map(Kind.of, others)])


def binding(domain: Domain, device: str, name: bytes) -> bytes:
    """What a sealed update is bound to: the run, the device, and the digest of what is inside."""
    return f"flower-chain update {domain.chain_id} {domain.contract} {device} ".encode() + name


def _parse(packed: bytes, layout: Format) -> Arrays:
    try:
        update = unpack(packed)
        layout.check(update)
    except FormatError as fault:
        raise RefusedError(Refusal.WRONG_FORMAT, str(fault)) from fault
    try:
        check_finite(update)
    except FormatError as fault:
        raise RefusedError(Refusal.NOT_FINITE, str(fault)) from fault
    return update
