"""What a device does where updates are encrypted: it looks at the key, and encrypts."""

from logging import WARNING

from flwr.app import Context
from flwr.common import log

from flower_chain.cipher_files import key_digest
from flower_chain.errors import TaskRefused
from flower_chain.plan import RecordAndRewardPlan
from flower_chain.privacy.ciphers import Cipher
from flower_chain.updates import Arrays


def check_key(plan: RecordAndRewardPlan, context: Context) -> None:
    """Refuse a plan with another key than the one that ``cipher-key`` names in the node config.

    Whoever has the private key of a plan's can decrypt, so a device's operator should know whose
    it is. Where an operator demands a key, updates that are not encrypted are refused too.

    Raises
    ------
    TaskRefused
    """
    wanted = context.node_config.get("cipher-key")
    if wanted is None:
        return
    if not plan.encryption:
        raise TaskRefused(f"the plan encrypts nothing, this device wants the key {wanted}")
    named = key_digest(plan.public_key)
    if named != str(wanted).lower().removeprefix("0x"):
        raise TaskRefused(f"the plan encrypts under the key {named}, this device under {wanted}")


def encrypted(update: Arrays, cipher: Cipher) -> Arrays:
    """The update, encrypted; says so if values had to be clipped."""
    if clipped := cipher.clipped(update):
        log(
            WARNING,
            "%d of %d values of the update are outside the plan's range of %g: clipped",
            clipped,
            cipher.size,
            cipher.terms.value_range,
        )
    return cipher.encrypt(update)
