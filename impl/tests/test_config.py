"""Configuration: what is wrong is named with file, key and value; what is secret is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from espthrunat.config import ConfigError, load
from espthrunat.ike.policy import EncapsulationPolicy, Secret

GOOD = """
[local]
address = "192.168.1.11"
identity = "client1.example"

[[connection]]
name = "server"
remote = "203.0.113.18"
remote_identity = "server.example"
psk = "correct horse battery staple"
local_network = "192.168.1.11/32"
remote_network = "10.99.0.1/32"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "host.toml"
    file.write_text(text)
    return file


def test_a_small_configuration_gets_secure_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    (connection,) = config.connections
    assert config.port == 500
    assert connection.encapsulation == EncapsulationPolicy.AUTO
    assert connection.pfs is not None
    assert connection.source == "192.168.1.11"
    names = [s.name for s in connection.ike_suites] + [s.name for s in connection.esp_suites]
    assert not any("sha1" in n or "md5" in n or "des" in n for n in names)
    assert all(s.group.number in (14, 15, 16, 19, 20) for s in connection.ike_suites)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('remote = "203.0.113.18"', 'remote = "somewhere"', "connection[0].remote = 'somewhere': not an IPv4 address"),
        ('remote = "203.0.113.18"', "remote = 5", "connection[0].remote = 5: Expected `str`, got `int`"),
        ('name = "server"', 'name = "server"\nesp = ["rot13"]', "connection[0].esp = 'rot13': unknown; known are"),
        ('name = "server"', 'name = "server"\nike = ["aes128-md5-modp1024"]', "'aes128-md5-modp1024': unknown hash"),
        ('name = "server"', 'name = "server"\nike = ["des"]', "a suite reads like aes128-sha256-ecp256"),
        ('name = "server"', 'name = "server"\npfs = "modp768"', "connection[0].pfs = 'modp768': unknown; known are"),
        ('name = "server"', 'name = "server"\nesp_lifetime = 1', "connection[0].esp_lifetime = 1: must be 30 to"),
        ('name = "server"', 'name = "server"\nfast = true', "unknown field `fast`"),
        ('name = "server"', 'name = "server"\nencapsulation = "maybe"', "connection[0].encapsulation = 'maybe'"),
        ('address = "192.168.1.11"', 'address = "0.0.0.0"', "local.address = '0.0.0.0': NAT discovery needs"),
        ('address = "192.168.1.11"', "", "missing required field `address`"),
        ('local_network = "192.168.1.11/32"', 'local_network = "192.168.1.11/24"', "not an IPv4 network"),
        ('psk = "correct horse battery staple"', "", "connection[0].psk: give either psk or psk_file"),
        ('psk = "correct horse battery staple"', 'psk_file = "none"', "psk_file = 'none': cannot be read: No such"),
        ('identity = "client1.example"', 'identity = "two words"', "local.identity = 'two words'"),
        ("[local]", "[local", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert says in message
    assert "\n" not in message


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD.replace('psk = "correct horse battery staple"', "psk = 8675309")))
    assert "connection[0].psk" in str(caught.value)
    assert "8675309" not in str(caught.value)


def test_a_key_may_stand_in_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"from a file\n")
    config = load(write(tmp_path, GOOD.replace('psk = "correct horse battery staple"', 'psk_file = "key"')))
    assert config.connections[0].secret == Secret(b"from a file")
    assert "from a file" not in repr(config)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load(tmp_path / "absent.toml")
