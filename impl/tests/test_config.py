"""Configuration: what is wrong is named with file, key and value; what is secret is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificate_world import default_root, pem_key

from espthrunat.config import ConfigError, load
from espthrunat.ike.policy import Authentication, EncapsulationPolicy, Exchange, Rebinding, Secret
from espthrunat.messages import Mode, Selector

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
        ('name = "server"', 'name = "server"\nike = ["aes128-md4-modp1024"]', "'aes128-md4-modp1024': unknown hash"),
        ('name = "server"', 'name = "server"\nike = ["des"]', "a suite reads like aes128-sha256-ecp256"),
        ('name = "server"', 'name = "server"\npfs = "modp512"', "connection[0].pfs = 'modp512': unknown; known are"),
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
        ('name = "server"', 'name = "a@b"', "connection[0].name = 'a@b': must not contain '@'"),
        ('name = "server"', 'name = "server"\nmode = "tunel"', "connection[0].mode = 'tunel'"),
        ('name = "server"', 'name = "server"\nexchange = "quick"', "connection[0].exchange = 'quick'"),
        ('name = "server"', 'name = "server"\nrebinding = "always"', "connection[0].rebinding = 'always'"),
        ('name = "server"', 'name = "server"\nesp_octets = 1', "connection[0].esp_octets = 1: must be 0, or 10000 to"),
        ('name = "server"', 'name = "server"\nrekey_margin = 0.9', "rekey_margin = 0.9: must be 0.01 to 0.5"),
        ('name = "server"', 'name = "server"\ndpd = nan', "connection[0].dpd = nan: must be 0, or 0.1 to"),
        ('name = "server"', 'name = "server"\nkeepalive = -1', "connection[0].keepalive = -1.0: must be 0, or"),
        ('name = "server"', 'name = "server"\nkeepalive_tail = inf', "connection[0].keepalive_tail = inf: must be"),
        ('name = "server"', 'name = "server"\nrekey_overlap = -1', "connection[0].rekey_overlap = -1.0: must be"),
        (
            'name = "server"',
            'name = "server"\ntraffic_protocol = "smtp"',
            "connection[0].traffic_protocol = 'smtp': not a protocol: any, icmp, tcp, udp, or a number below 256",
        ),
        ('name = "server"', 'name = "server"\ntraffic_protocol = 256', "connection[0].traffic_protocol = 256: not a"),
        (
            'name = "server"',
            'name = "server"\ntraffic_protocol = "icmp"\ntraffic_local_port = 7',
            "connection[0].traffic_local_port = 7: a port needs",
        ),
        (
            'name = "server"',
            'name = "server"\ntraffic_protocol = "tcp"\ntraffic_remote_port = 65536',
            "connection[0].traffic_remote_port = 65536: must be 0 to 65535",
        ),
        (
            'name = "server"',
            'name = "server"\nmode = "transport"',
            "connection[0].local_network = '192.168.1.11/32': transport mode protects the two hosts' own addresses",
        ),
        ('local_network = "192.168.1.11/32"', "", "connection[0].local_network: is needed in tunnel mode"),
        (
            'name = "server"',
            'name = "server"\nexchange = "aggressive"\nike = ["aes256-sha256-ecp256", "aes256-sha256-modp2048"]',
            "Aggressive Mode cannot negotiate its group",
        ),
        (
            'name = "server"',
            'name = "server"\nauthentication = "rsa"',
            "connection[0].authentication = 'rsa': needs local.certificate, local.private_key and local.ca",
        ),
        ("[local]", '[local]\ncertificate = "none.pem"', "local.certificate = 'none.pem': cannot be read: No such"),
        ("[local]", "[local]\nmax_half_open = 0", "local.max_half_open = 0: must be 1 to"),
        ("[local]", "[local]\nnew_phase1_per_second = 0", "local.new_phase1_per_second = 0.0: must be 0.1 to"),
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


def with_lines(*lines: str) -> str:
    return GOOD.replace('name = "server"', "\n".join(['name = "server"', *lines]))


TRANSPORT = GOOD[: GOOD.index("local_network")] + 'mode = "transport"\n'


def test_what_is_not_said_is_safe(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    (connection,) = config.connections
    assert (connection.mode, connection.exchange) == (Mode.TUNNEL, Exchange.MAIN)
    assert connection.authentication == Authentication.PSK
    assert connection.rebinding == Rebinding.NEVER
    assert connection.rekey
    assert connection.acquire
    assert not connection.start
    assert connection.dpd_interval > 0
    assert (connection.keepalive_interval, connection.keepalive_tail) == (20.0, 300.0)
    assert (config.max_half_open, config.new_phase1_per_second, config.batches) == (1000, 100.0, True)
    assert config.warnings == []


def test_every_word_reaches_the_policy(tmp_path: Path) -> None:
    lines = ["esp_octets = 1000000", "rekey = false", "rekey_margin = 0.2", "rekey_overlap = 3", "dpd = 1.5"]
    lines += ["keepalive = 5", "keepalive_tail = 60", 'rebinding = "authenticated"', "acquire = false"]
    local = "[local]\nmax_half_open = 7\nnew_phase1_per_second = 2.5\nbatches = false"
    config = load(write(tmp_path, with_lines(*lines).replace("[local]", local)))
    (c,) = config.connections
    assert (c.esp_octets, c.rekey, c.rekey_margin, c.rekey_overlap) == (1_000_000, False, 0.2, 3.0)
    assert (c.dpd_interval, c.keepalive_interval, c.keepalive_tail) == (1.5, 5.0, 60.0)
    assert (c.rebinding, c.acquire) == (Rebinding.AUTHENTICATED, False)
    assert (config.max_half_open, config.new_phase1_per_second, config.batches) == (7, 2.5, False)


@pytest.mark.parametrize(("key", "field"), [("dpd", "dpd_interval"), ("keepalive", "keepalive_interval")])
def test_zero_switches_off(tmp_path: Path, key: str, field: str) -> None:
    (connection,) = load(write(tmp_path, with_lines(f"{key} = 0"))).connections
    assert getattr(connection, field) == 0


@pytest.mark.draft("QM-7")
@pytest.mark.parametrize(
    ("protocol", "number"), [('"udp"', 17), ('"tcp"', 6), ('"icmp"', 1), ("47", 47), ('"47"', 47), ('"any"', 0)]
)
def test_traffic_is_narrowed_by_protocol(tmp_path: Path, protocol: str, number: int) -> None:
    (connection,) = load(write(tmp_path, with_lines(f"traffic_protocol = {protocol}"))).connections
    assert connection.selector == Selector("192.168.1.11/32", "10.99.0.1/32", number)


@pytest.mark.draft("QM-7")
def test_traffic_is_narrowed_by_ports_in_both_modes(tmp_path: Path) -> None:
    ports = 'traffic_protocol = "udp"\ntraffic_local_port = 1701\ntraffic_remote_port = 1702\n'
    (tunnel,) = load(write(tmp_path, GOOD + ports)).connections
    assert tunnel.selector == Selector("192.168.1.11/32", "10.99.0.1/32", 17, 1701, 1702)
    (transport,) = load(write(tmp_path, TRANSPORT + ports)).connections
    assert transport.selector == Selector("192.168.1.11/32", "203.0.113.18/32", 17, 1701, 1702)


def test_transport_mode_protects_the_hosts_own_addresses(tmp_path: Path) -> None:
    (connection,) = load(write(tmp_path, TRANSPORT)).connections
    assert connection.mode == Mode.TRANSPORT
    assert connection.selector == Selector("192.168.1.11/32", "203.0.113.18/32")
    assert connection.source == ""
    (anybody,) = load(write(tmp_path, TRANSPORT.replace('remote = "203.0.113.18"', 'remote = "any"'))).connections
    assert anybody.selector == Selector("192.168.1.11/32", "0.0.0.0/0")


def test_aggressive_mode_has_one_group_without_being_told(tmp_path: Path) -> None:
    (connection,) = load(write(tmp_path, with_lines('exchange = "aggressive"'))).connections
    assert connection.exchange == Exchange.AGGRESSIVE
    assert len({suite.group for suite in connection.ike_suites}) == 1


def test_what_should_not_be_used_is_named(tmp_path: Path) -> None:
    lines = ['ike = ["3des-md5-modp1024", "aes256-sha256-ecp256"]', 'esp = ["aes256gcm16", "3des-sha1"]']
    lines += ['pfs = "modp768"']
    assert load(write(tmp_path, with_lines(*lines))).warnings == [
        "server: ike = '3des-md5-modp1024' is legacy (3des, md5, modp1024)",
        "server: esp = '3des-sha1' is legacy",
        "server: pfs = 'modp768' is legacy",
    ]


def test_aggressive_mode_with_a_pre_shared_key_is_warned_of(tmp_path: Path) -> None:
    (warning,) = load(write(tmp_path, with_lines('exchange = "aggressive"'))).warnings
    assert warning == "server: Aggressive Mode with a pre-shared key: its hash can be guessed offline"


def test_rsa_takes_no_pre_shared_key(tmp_path: Path) -> None:
    make_pki(tmp_path)
    with pytest.raises(ConfigError, match=r'connection\[0\].psk: authentication = "rsa" takes none') as caught:
        load(write(tmp_path, RSA.replace('authentication = "rsa"', 'authentication = "rsa"\npsk = "horse"')))
    assert "horse" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["certificate", "private_key", "ca"])
def test_certificate_key_and_authority_belong_together(tmp_path: Path, left_out: str) -> None:
    make_pki(tmp_path)
    lines = [line for line in RSA.splitlines() if not line.startswith(left_out)]
    with pytest.raises(ConfigError, match=f"local.{left_out}: certificate, private_key and ca are needed together"):
        load(write(tmp_path, "\n".join(lines)))


def test_certificates_stand_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    key = make_pki(tmp_path)
    config = load(write(tmp_path, RSA))
    (connection,) = config.connections
    assert connection.authentication == Authentication.RSA
    assert connection.secret is None
    assert connection.credentials is not None
    assert len(connection.credentials.chain) == len(connection.credentials.authorities) == 1
    assert key not in repr(config)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    make_pki(tmp_path)
    (tmp_path / "pki" / "host.pem").write_text("nothing of the kind")
    with pytest.raises(ConfigError, match=r"local.certificate") as caught:
        load(write(tmp_path, RSA))
    assert "\n" not in str(caught.value)


def test_an_identity_that_the_certificate_does_not_have_is_named(tmp_path: Path) -> None:
    make_pki(tmp_path, "another.example")
    with pytest.raises(ConfigError, match=r"local.identity = 'client1.example': local.certificate does not say so"):
        load(write(tmp_path, RSA))


RSA = GOOD.replace('psk = "correct horse battery staple"', 'authentication = "rsa"').replace(
    "[local]", '[local]\ncertificate = "pki/host.pem"\nprivate_key = "pki/host.key"\nca = "pki/ca.pem"'
)


def make_pki(folder: Path, name: str = "client1.example") -> str:
    """An authority and a host's certificate below `folder`; the key's own text, which nothing may show."""
    host = default_root().issue("CN=client1", [name])
    (folder / "pki").mkdir(exist_ok=True)
    (folder / "pki" / "ca.pem").write_bytes(default_root().pem)
    (folder / "pki" / "host.pem").write_bytes(host.pem)
    (folder / "pki" / "host.key").write_bytes(pem_key(host.key))
    return pem_key(host.key).decode().splitlines()[5]


GATEWAY = """
[local]
address = "203.0.113.18"
identity = "gateway.example"
pool = "10.200.0.0/24"

[[connection]]
name = "clients"
remote_identity = "*.example"
psk = "correct horse battery staple"
local_network = "10.99.0.0/16"
remote_network = "192.168.1.11/32"
translate = true
"""


def test_a_gateway_translates_to_addresses_of_its_pool(tmp_path: Path) -> None:
    config = load(write(tmp_path, GATEWAY))
    assert config.pool == "10.200.0.0/24"
    assert config.connections[0].translate
    assert not load(write(tmp_path, GATEWAY.replace("translate = true", ""))).connections[0].translate
    assert load(write(tmp_path, GOOD)).pool == ""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('pool = "10.200.0.0/24"', "", "connection[0].translate = True: needs local.pool"),
        ('"10.200.0.0/24"', '"10.200.0.1/24"', "local.pool = '10.200.0.1/24': not an IPv4 network"),
        ('"10.200.0.0/24"', '"203.0.113.0/24"', "local.pool = '203.0.113.0/24': has local.address 203.0.113.18 in it"),
        (
            '"10.200.0.0/24"',
            '"10.0.0.0/8"',
            "local.pool = '10.0.0.0/8': has connection[0].local_network 10.99.0.0/16 in it",
        ),
        (
            "192.168.1.11/32",
            "192.168.0.0/16",
            "connection[0].remote_network = '192.168.0.0/16': larger than local.pool 10.200.0.0/24",
        ),
        (
            "192.168.1.11/32",
            "10.200.0.9/32",
            "overlaps connection[0].remote_network 10.200.0.9/32, which is not translated",
        ),
        (
            'local_network = "10.99.0.0/16"\nremote_network = "192.168.1.11/32"',
            'mode = "transport"',
            "connection[0].translate = True: transport mode has no inner addresses",
        ),
    ],
)
def test_what_a_pool_cannot_be_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = GATEWAY.replace(old, new)
    if "not translated" in says:
        text = text.replace("translate = true", "")
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_may_have_an_address_of_the_pool_and_the_gateway_protect_more_than_the_pool(tmp_path: Path) -> None:
    assert load(write(tmp_path, GATEWAY.replace("192.168.1.11/32", "10.200.0.9/32"))).pool
    assert load(write(tmp_path, GATEWAY.replace("10.99.0.0/16", "0.0.0.0/0"))).pool
