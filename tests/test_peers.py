"""Who takes part, and how one knows what they said."""

import hashlib

import numpy as np
from eth_account import Account

from flower_chain import peers
from flower_chain.keys import address_of, public_key
from flower_chain.records import Commitment, Domain, sign
from flower_chain.updates import Format


def test_accounts_are_worked_out_once_however_many_signatures_are_checked(monkeypatch):
    signers = [Account.from_key(hashlib.sha256(bytes([n])).digest()) for n in range(3)]
    signers.sort(key=lambda signer: signer.address.lower())
    asked = []
    monkeypatch.setattr(peers, "address_of", lambda key: asked.append(key) or address_of(key))
    domain = Domain(7, "0x" + 40 * "1")
    model = Format.of({"w": np.zeros(3, np.float32)})
    ours = peers.Peers(domain, tuple(map(public_key, signers)), model, 100)
    for number, signer in enumerate(signers):
        said = Commitment(number, 0, bytes(32))
        assert ours.is_signed(said, sign(said.encode(domain), signer))
    assert len(asked) == len(signers)
