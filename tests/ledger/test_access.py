"""Grants of access, on each ledger."""

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st

from flower_chain.errors import Reverted, WrongChain
from flower_chain.ledger import Ledger
from flower_chain.ledger.access import Access, AccessList, Granted
from flower_chain.records import Grant, Revocation, sign

RUN, OTHER_RUN = "0x" + 40 * "1", "0x" + 40 * "2"
READER = "0x" + 40 * "3"
CID, OTHER_CID = bytes.fromhex("01551220") + b"\1" * 32, bytes.fromhex("01551220") + b"\2" * 32
WRAP, OTHER_WRAP = b"\5" * 48, b"\6" * 384
DEVICE: LocalAccount = Account.from_key(b"\7" * 32)


@pytest.fixture
def access(ledger: Ledger, owner: LocalAccount) -> AccessList:
    """A new list."""
    return AccessList.deploy(ledger, owner, RUN)


def send(access: AccessList, sender: LocalAccount, calls: list[tuple[str, list]]) -> None:
    """Carry calls out."""
    for function, batch in calls:
        access.contract.transact(sender, function, batch)


def test_what_an_account_grants_and_takes_back_is_told(access, owner):
    send(access, owner, access.grant(owner, READER, {CID: WRAP, OTHER_CID: OTHER_WRAP}))
    one = Granted(owner.address, READER, CID, WRAP)
    other = Granted(owner.address, READER, OTHER_CID, OTHER_WRAP)
    assert access.grants() == [one, other]
    send(access, owner, access.revoke(owner, READER, [CID]))
    assert access.grants() == [Granted(owner.address, READER, CID, WRAP, revoked=True), other]
    assert not access.stands(owner.address, READER, CID)
    assert access.stands(owner.address, READER, OTHER_CID)


def test_a_device_without_gas_grants_and_revokes_by_signature(access, owner):
    send(access, owner, access.grant(DEVICE, READER, {CID: WRAP}))
    assert access.grants() == [Granted(DEVICE.address, READER, CID, WRAP)]
    send(access, owner, access.revoke(DEVICE, READER, [CID]))
    assert access.grants()[0].revoked


def test_nobody_grants_in_the_name_of_another(access, owner):
    forged = Grant(DEVICE.address, READER, 0, CID, WRAP)
    signature = sign(forged.encode(access.domain), owner)
    item = (*forged.as_tuple(), signature[:32], signature[32:])
    with pytest.raises(Reverted, match=f"NotSigned\\({DEVICE.address.lower()}"):
        access.contract.transact(owner, "grant", [item])


def test_an_old_grant_does_not_revive_what_was_revoked(access, owner):
    old = access.grant(DEVICE, READER, {CID: WRAP})
    send(access, owner, old)
    send(access, owner, access.revoke(DEVICE, READER, [CID]))
    with pytest.raises(Reverted, match="WrongTurn"):
        send(access, owner, old)
    send(access, owner, access.grant(DEVICE, READER, {CID: WRAP}))
    assert [grant.revoked for grant in access.grants()] == [True, False]


def test_an_old_revocation_takes_nothing_back_again(access, owner):
    send(access, owner, access.grant(DEVICE, READER, {CID: WRAP}))
    old = access.revoke(DEVICE, READER, [CID])
    send(access, owner, old)
    send(access, owner, access.grant(DEVICE, READER, {CID: WRAP}))
    with pytest.raises(Reverted, match="WrongTurn"):
        send(access, owner, old)


def test_many_files_take_several_transactions(access, owner):
    wraps = {bytes.fromhex("01551220") + bytes([n]) * 32: OTHER_WRAP for n in range(60)}
    calls = access.grant(DEVICE, READER, wraps)
    assert [len(batch) for _, batch in calls] == [50, 10]
    send(access, owner, calls)
    assert {grant.cid: grant.wrap for grant in access.grants()} == wraps


def test_a_list_of_this_run_is_taken_and_that_of_another_refused(access):
    access.check(RUN)
    with pytest.raises(WrongChain, match=f"is that of {RUN}, not of {OTHER_RUN}"):
        access.check(OTHER_RUN)


def test_another_contract_is_no_list(ledger, owner):
    token = ledger.deploy(owner, "RewardToken", 1)
    with pytest.raises(WrongChain, match="is not this package's AccessList"):
        AccessList.at(ledger, token.address, 0).check(RUN)


def test_a_list_that_something_else_created_is_refused(access, ledger, monkeypatch):
    """Its code is right, but what is in its storage need not have come there by its rules."""
    monkeypatch.setattr(type(ledger), "data_of", lambda *_: b"other code")
    with pytest.raises(WrongChain, match="was not created by"):
        access.check(RUN)


def test_records_name_their_fields_as_the_contract_does(access, owner):
    """The contract takes the signature of a record only if both compute the same hash."""
    grant = Grant(DEVICE.address, READER, 0, CID, WRAP)
    revocation = Revocation(DEVICE.address, READER, 1, CID)
    for function, record in (("grant", grant), ("revoke", revocation)):
        signature = sign(record.encode(access.domain), DEVICE)
        item = (*record.as_tuple(), signature[:32], signature[32:])
        access.contract.transact(owner, function, [item])
    assert access.grants()[0].revoked


# --- which grants count --------------------------------------------------------------------------

MEMBER, ALICE, BOB, STRANGER = (f"0x{letter * 40}" for letter in "abcd")


def access_of(*grants: Granted) -> Access:
    """To files that were sealed for one member."""
    return Access(grants, frozenset([MEMBER]))


def test_a_grant_of_who_can_open_the_file_counts() -> None:
    access = access_of(Granted(MEMBER, ALICE, CID, WRAP))
    assert access.has(MEMBER, CID)
    assert access.has(ALICE, CID)
    assert not access.has(ALICE, OTHER_CID)
    assert (access.wrap(ALICE, CID), access.wrap(MEMBER, CID)) == (WRAP, None)


def test_a_reader_passes_on_what_it_was_granted() -> None:
    passed = Granted(ALICE, BOB, CID, OTHER_WRAP)
    assert access_of(passed, Granted(MEMBER, ALICE, CID, WRAP)).wrap(BOB, CID) == OTHER_WRAP
    assert not access_of(passed, Granted(MEMBER, ALICE, OTHER_CID, WRAP)).has(BOB, CID)


def test_what_a_reader_passed_on_goes_with_its_own_access() -> None:
    access = access_of(
        Granted(MEMBER, ALICE, CID, WRAP, revoked=True),
        Granted(ALICE, BOB, CID, WRAP),
        Granted(BOB, ALICE, CID, WRAP),
    )
    assert access.standing == []


def test_the_grant_of_a_stranger_counts_for_nothing() -> None:
    access = access_of(Granted(STRANGER, ALICE, CID, WRAP), Granted(STRANGER, STRANGER, CID, WRAP))
    assert not access.has(ALICE, CID)
    assert not access.has(STRANGER, CID)


def test_of_two_grants_one_is_left_when_the_other_is_taken_back() -> None:
    revoked = Granted(MEMBER, ALICE, CID, WRAP, revoked=True)
    assert access_of(revoked, Granted(MEMBER, ALICE, CID, OTHER_WRAP)).wrap(ALICE, CID) == (
        OTHER_WRAP
    )


accounts = st.sampled_from([MEMBER, ALICE, BOB, STRANGER])
some_grants = st.lists(st.builds(Granted, accounts, accounts, st.just(CID), st.just(WRAP)))


@given(some_grants)
def test_who_has_access_is_who_a_member_reaches(grants: list[Granted]) -> None:
    access, reached = access_of(*grants), {MEMBER}
    for _ in grants:
        reached |= {grant.reader for grant in grants if grant.granter in reached}
    assert {one for one in (MEMBER, ALICE, BOB, STRANGER) if access.has(one, CID)} == reached
