"""Recompute what became of encrypted updates: whose they were, their sum, and the model of it."""

from collections.abc import Sequence

from flower_chain.errors import FormatError, StoreError, Unverified
from flower_chain.ledger.federation import History, Version
from flower_chain.privacy.ciphers import Cipher
from flower_chain.records import SignedSum, parts_of, recover
from flower_chain.run import RecordAndRewardRun
from flower_chain.store.cid import cid_from_bytes
from flower_chain.updates import Arrays, apply, digest, digest_of, unpack


class SumVerifier:
    """Checks the sums of a run.

    Parameters
    ----------
    run : RecordAndRewardRun
        Whose plan names a cipher.
    cipher : Cipher
        That of the plan.
    """

    def __init__(self, run: RecordAndRewardRun, cipher: Cipher) -> None:
        self._run, self._plan, self._cipher = run, run.plan, cipher
        self._summed: set[bytes] = set()

    def check_holder(self, history: History) -> None:
        """Unverified if who holds the key has another role."""
        holder = self._plan.key_holder
        if holder in history.enrolled or holder in self._run.sealed_for:
            raise Unverified(f"the key holder {holder} is a device, the owner or a reader")

    def recorded(self, version: Version) -> SignedSum | None:
        """The sum that the next model is of, as the ledger has it, if there is one.

        Raises
        ------
        Unverified
            If it is not signed by the holder of the key, is not said to be of what was accepted, of
            too few or too many, or if something was in a sum before.
        """
        if not version.sums:
            return None
        where = f"version {version.number}, sum"
        if len(version.sums) > 1:
            raise Unverified(f"{where}: {len(version.sums)} were recorded")
        (found,) = version.sums
        if recover(found.said.encode(self._run.federation.domain), found.signature) != (
            self._plan.key_holder
        ):
            raise Unverified(f"{where}: not signed by the key holder, {self._plan.key_holder}")
        parts = [verdict.signed.contribution for verdict in version.accepted]
        if parts_of(self._plan.weighed(parts)) != found.said.parts:
            raise Unverified(f"{where}: the key holder was told that it is of something else")
        if not self._plan.least_summed <= len(parts) <= self._plan.most_summed:
            raise Unverified(
                f"{where}: of {len(parts)} contributions, the plan allows "
                f"{self._plan.least_summed} to {self._plan.most_summed}"
            )
        digests = {part.digest for part in parts}
        if len(digests) < len(parts) or digests & self._summed:
            raise Unverified(f"{where}: an update is in two sums, or twice in one")
        self._summed |= digests
        return found

    def check_encrypted(
        self, version: Version, found: SignedSum, updates: Sequence[Arrays]
    ) -> None:
        """Unverified if what was decrypted is not the sum of these encrypted updates."""
        encrypted = self._cipher.add(updates, self._weights(version))
        if digest_of(encrypted) != found.said.encrypted:
            raise Unverified(
                f"version {version.number}, sum: the key holder decrypted something else than the "
                "sum of the accepted updates"
            )

    def apply(self, version: Version, found: SignedSum, model: Arrays) -> Arrays:
        """T + eta times the mean that the sum comes to; Unverified if it is not in the store."""
        try:
            packed = self._run.store.get(cid_from_bytes(found.cid))
            if digest(packed) != found.said.decrypted:
                raise FormatError(f"its digest is {digest(packed).hex()}, signed was another")
            mean = self._cipher.mean(unpack(packed), sum(self._weights(version)))
        except (StoreError, FormatError) as fault:
            raise Unverified(f"version {version.number}, sum: {fault}") from fault
        return apply(model, mean, self._plan.learning_rate)

    def _weights(self, version: Version) -> list[int]:
        accepted = [verdict.signed.contribution for verdict in version.accepted]
        return [weight for _, weight in self._plan.weighed(accepted)]
