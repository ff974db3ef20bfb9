"""Is this the run, the owner and the model that the device agreed to train?"""

from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context

from flower_chain import keys, messages, updates
from flower_chain.errors import TaskRefused
from flower_chain.messages import Request
from flower_chain.records import recover_public_key


def check_model(received: ArrayRecord, request: Request[Any]) -> None:
    """Refuse another model than the one that the owner signed.

    Raises
    ------
    TaskRefused
    """
    digest = updates.digest_of(messages.views(received))
    if digest != request.task.model_digest:
        raise TaskRefused(
            f"the model received has digest {digest.hex()}, but version {request.task.version} "
            f"is signed as {request.task.model_digest.hex()}"
        )


def check_owner(request: Request[Any], context: Context) -> bytes:
    """The owner's public key, which its signature tells.

    The first owner, contract and plan that a device sees in a run are those that it stays with.

    Raises
    ------
    TaskRefused
    """
    owner = recover_public_key(request.task.encode(request.domain), request.signature)
    if owner is None:
        raise TaskRefused("the task is not signed")
    state = ConfigRecord(
        {
            "owner": keys.address_of(owner),
            "plan": request.plan.digest.hex(),
            "chain-id": request.domain.chain_id,
            "contract": request.domain.contract,
            "version": request.task.version,
        }
    )
    seen = context.state.config_records.get(messages.RECORD, state)
    for name in ("owner", "plan", "chain-id", "contract"):
        if seen[name] != state[name]:
            raise TaskRefused(f"the run's {name} is {seen[name]!r}, the task's {state[name]!r}")
    if request.task.version < cast(int, seen["version"]):
        raise TaskRefused(f"version {request.task.version}, but {seen['version']!r} was seen")
    context.state[messages.RECORD] = state
    return owner
