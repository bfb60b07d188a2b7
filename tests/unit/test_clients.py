"""One client for each endpoint and identity, and not more than so many."""

from __future__ import annotations

from lorafinetune.contract.layout import Location
from lorafinetune.storage.bucket import Credentials
from lorafinetune.storage.clients import Clients

HERE, THERE = Location("loras", "a/"), Location("data", "b/")
KEYS = Credentials("AKIAEXAMPLE1", "secret-1")


def test_two_places_of_one_identity_share_a_client() -> None:
    clients = Clients()
    one = clients.open(HERE, endpoint="http://127.0.0.1:1", region=None, credentials=KEYS)
    other = clients.open(THERE, endpoint="http://127.0.0.1:1", region=None, credentials=KEYS)
    assert one._client is other._client
    assert (one.location, other.location) == (HERE, THERE)


def test_another_identity_never_gets_it() -> None:
    clients = Clients()
    one = clients.open(HERE, endpoint="http://127.0.0.1:1", region=None, credentials=KEYS)
    rotated = Credentials("AKIAEXAMPLE1", "secret-2")
    for endpoint, credentials in (
        ("http://127.0.0.1:1", rotated),
        ("http://127.0.0.1:2", KEYS),
        ("http://127.0.0.1:1", None),
    ):
        assert clients.open(HERE, endpoint=endpoint, region=None, credentials=credentials)._client is not one._client


def test_they_are_bounded_and_the_one_in_use_stays() -> None:
    clients = Clients(limit=2)
    kept = clients.open(HERE, endpoint="http://127.0.0.1:1", region=None, credentials=KEYS)
    for port in (2, 3):
        clients.open(HERE, endpoint=f"http://127.0.0.1:{port}", region=None, credentials=KEYS)
        again = clients.open(THERE, endpoint="http://127.0.0.1:1", region=None, credentials=KEYS)
        assert again._client is kept._client
    assert len(clients) == 2
