"""Certificates of a run: chains that OpenSSL accepts, names in their place, keys for their owner only."""

from __future__ import annotations

import datetime
import pathlib
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from natbed import pki
from natbed.stacks.base import Credentials

NAMES = {"client1": "client1.natbed.example", "server": "server.natbed.example"}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    return pki.issue(tmp_path_factory.mktemp("run"), NAMES)


def test_each_host_has_a_chain_with_its_name(issued: dict[str, Credentials]) -> None:
    for host, name in NAMES.items():
        files = issued[host]
        own, issuer = x509.load_pem_x509_certificates(files.certificate.read_bytes())
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]
        key = load_pem_private_key(files.private_key.read_bytes(), None)
        assert own.public_key() == key.public_key()
        assert key.key_size == 2048  # type: ignore[union-attr]
        assert files.private_key.stat().st_mode & 0o777 == 0o600
        assert files.certificate.parent.name == host
        assert own.issuer == issuer.subject
        assert own.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=2)
    keys = {files.private_key.read_bytes() for files in issued.values()}
    assert len(keys) == 2
    assert len({files.authorities.read_bytes() for files in issued.values()}) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
def test_openssl_accepts_the_chains_and_no_stranger(issued: dict[str, Credentials], tmp_path: pathlib.Path) -> None:
    def verify(own: Credentials, authorities: pathlib.Path) -> int:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", str(authorities)]
        command += ["-untrusted", str(own.certificate), str(own.certificate)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    other = pki.issue(tmp_path, {"client1": NAMES["client1"]})["client1"]
    assert [verify(files, files.authorities) for files in issued.values()] == [0, 0]
    assert verify(other, issued["server"].authorities) != 0


def test_a_message_with_the_chain_does_not_fit_an_ethernet(issued: dict[str, Credentials]) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    chain = x509.load_pem_x509_certificates(issued["server"].certificate.read_bytes())
    assert sum(len(one.public_bytes(Encoding.DER)) for one in chain) > 1472
