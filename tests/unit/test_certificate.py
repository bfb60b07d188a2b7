"""The endpoint's own authority and certificate."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509

from lorafinetune.receiver.certificate import (
    SERVER_DAYS,
    host_of,
    make_authority,
    make_server_certificate,
    renewal_due,
)

NOW = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
HOSTS = ["lorafinetune-webhook.system.svc", "10.0.0.7"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://lorafinetune-webhook.system.svc:8443", "lorafinetune-webhook.system.svc"),
        ("https://10.0.0.7:8443/v1/events", "10.0.0.7"),
        ("https://[fd00::1]:8443", "fd00::1"),
    ],
)
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize("url", ["http://x", "x:8443", "https://", ""])
def test_url_that_names_no_host(url: str) -> None:
    with pytest.raises(ValueError, match="must be https"):
        host_of(url)


def test_names_and_life() -> None:
    authority = make_authority(NOW)
    made = x509.load_pem_x509_certificate(make_server_certificate(authority, HOSTS, NOW).certificate)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOSTS[0]]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == [HOSTS[1]]
    assert made.not_valid_after_utc == NOW + datetime.timedelta(days=SERVER_DAYS)
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))


def test_when_it_is_renewed() -> None:
    authority, other = make_authority(NOW), make_authority(NOW)
    made = make_server_certificate(authority, HOSTS, NOW, days=90).certificate

    def due(hosts: list[str], signed_by: bytes, days: float) -> bool:
        return renewal_due(made, hosts, signed_by, NOW + datetime.timedelta(days=days))

    assert not due(HOSTS, authority.certificate, 59)
    assert not due(HOSTS[:1], authority.certificate, 59)
    assert due(HOSTS, authority.certificate, 61)
    assert due([*HOSTS, "new.name"], authority.certificate, 1)
    assert due(HOSTS, other.certificate, 1)
    assert renewal_due(b"no certificate", HOSTS, authority.certificate, NOW)


def test_keys_are_not_shown() -> None:
    authority = make_authority(NOW)
    assert "PRIVATE" not in repr(authority)
    assert "PRIVATE" not in repr(make_server_certificate(authority, HOSTS, NOW))
