"""Keys, who is known, and what ZeroMQ is told of them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from zmq.utils import z85

from samplerpool.errors import TransportError, UsageError
from samplerpool.pool.keybook import KeyBook, with_key, without_key
from samplerpool.wire.keys import (
    OWNER,
    ClientKeys,
    KeyPair,
    KeyRing,
    checked_key_name,
    checked_public_key,
    own_key_path,
    own_pair,
    read_own_pair,
)
from samplerpool.wire.messages import AddKey, ListKeys, RevokeKey
from samplerpool.wire.sockets import zap_answer

KEY, ANOTHER = KeyPair.new().public, KeyPair.new().public


def question(key: str, mechanism: bytes = b"CURVE") -> list[bytes]:
    return [b"1.0", b"7", b"domain", b"10.0.0.1", b"", mechanism, z85.decode(key)]


def test_pairs_differ_and_hide_their_secret() -> None:
    first, second = KeyPair.new(), KeyPair.new()
    assert len({first.public, first.secret, second.public, second.secret}) == 4
    assert first.secret not in repr(first)
    assert checked_public_key(first.public) == first.public


@pytest.mark.parametrize("text", ["", "short", "x" * 39, "x" * 41, " " + "x" * 39, "x" * 39 + "\n", "é" * 40, '"' * 40])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(UsageError, match="is not a public key"):
        checked_public_key(text)


def test_names_of_keys() -> None:
    assert checked_key_name("alice@host-2.example_x") == "alice@host-2.example_x"
    for name in ("", "-x", "a b", "a/b", "a\n", "x" * 65):
        with pytest.raises(UsageError, match="cannot be a key's name"):
            checked_key_name(name)


# ---- one's own pair -----------------------------------------------------------------------------------------------


def test_one_s_own_pair_is_made_once_and_kept_private() -> None:
    assert read_own_pair() is None
    pair = own_pair()
    assert own_pair() == read_own_pair() == pair
    assert stat.S_IMODE(own_key_path().stat().st_mode) == 0o600
    own_key_path().chmod(0o640)
    with pytest.raises(TransportError, match="may be read by others"):
        own_pair()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"public": "x", "secret": "y"}', '{"public": 1, "secret": 2}'])
def test_a_damaged_pair_is_said_to_be_damaged(text: str) -> None:
    own_pair()
    own_key_path().write_text(text)
    with pytest.raises(TransportError, match="damaged; remove it"):
        own_pair()


def test_a_client_s_secret_is_in_the_file_or_one_s_own() -> None:
    full = ClientKeys("s", "p", "x")
    assert full.complete() is full
    with pytest.raises(TransportError, match="samplerpool keys mine"):
        ClientKeys("s", KEY).complete()
    mine = own_pair()
    assert ClientKeys("s", mine.public).complete() == ClientKeys("s", mine.public, mine.secret)
    with pytest.raises(TransportError, match="is for the public key"):
        ClientKeys("s", KEY).complete()


# ---- who is known -------------------------------------------------------------------------------------------------


def test_keys_are_added_and_revoked_by_name() -> None:
    names = with_key({KEY: OWNER}, "alice", ANOTHER)
    assert names == {KEY: OWNER, ANOTHER: "alice"}
    assert without_key(names, "alice") == {KEY: OWNER}
    with pytest.raises(UsageError, match="a key named 'alice' already"):
        with_key(names, "alice", KeyPair.new().public)
    with pytest.raises(UsageError, match="a key named 'owner' already"):
        with_key(names, OWNER, KeyPair.new().public)
    with pytest.raises(UsageError, match="known already, as 'alice'"):
        with_key(names, "bob", ANOTHER)
    with pytest.raises(UsageError, match="owner's key cannot be revoked"):
        without_key(names, OWNER)
    with pytest.raises(UsageError, match="no key named 'bob'; there are: alice, owner"):
        without_key(names, "bob")


def test_a_book_of_keys_is_seen_by_those_who_look_at_its_file(tmp_path: Path) -> None:
    book = KeyBook(tmp_path / "p.keys")
    seen = KeyRing(tmp_path / "p.keys")
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600
    assert book.lock.secret not in book.path.read_text() + repr(book.lock)
    assert seen.name_of(book.owner.public) == OWNER
    told = book.carry_out(AddKey(1, "alice", ANOTHER))
    assert told == book.carry_out(ListKeys(2))
    assert told["keys"][1] == {"name": "alice", "public_key": ANOTHER}
    assert seen.name_of(ANOTHER) is None
    assert (seen.refresh(), seen.refresh()) == (True, False)
    assert seen.name_of(ANOTHER) == "alice"
    book.carry_out(RevokeKey(3, "alice"))
    assert seen.refresh()
    assert seen.name_of(ANOTHER) is None
    with pytest.raises(UsageError, match="not a public key"):
        book.carry_out(AddKey(4, "bob", "key"))


@pytest.mark.parametrize("text", ["", "[]", "7", "\x00"])
def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.keys"
    path.write_text(json.dumps({KEY: "alice"}))
    ring = KeyRing(path)
    assert ring.name_of(KEY) == "alice"
    path.write_text(text)
    assert ring.refresh()
    assert dict(ring.names) == {}
    path.unlink()
    assert ring.refresh()


def test_a_file_of_keys_that_others_may_change_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "p.keys"
    path.write_text(json.dumps({KEY: "alice"}))
    path.chmod(0o666)
    assert KeyRing(path).name_of(KEY) is None


def test_zeromq_is_told_who_is_known(tmp_path: Path) -> None:
    (tmp_path / "p.keys").write_text(json.dumps({KEY: "alice"}))
    ring = KeyRing(tmp_path / "p.keys")
    assert zap_answer(question(KEY), ring) == [b"1.0", b"7", b"200", b"OK", KEY.encode(), b""]
    refused = [b"1.0", b"7", b"400", b"Unknown key", b"", b""]
    assert zap_answer(question(ANOTHER), ring) == refused
    assert zap_answer(question(KEY, b"PLAIN"), ring) == refused
    assert zap_answer(question(KEY)[:-1], ring) == refused
    assert zap_answer([*question(KEY)[:-1], b"short"], ring) == refused
    assert zap_answer([*question(KEY), b"more"], ring) == refused
