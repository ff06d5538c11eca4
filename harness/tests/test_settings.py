"""What each host is told: one secret a tunnel, known to its two ends and shown to nobody."""

from __future__ import annotations

import pathlib
import tomllib
from typing import Any

import pytest

from natbed.settings import Protection, host_settings
from natbed.stacks.base import Credentials, Forwards, HostSettings, Timing
from natbed.stacks.espthrunat import _toml
from natbed.topology_files import find


def test_both_ends_of_a_tunnel_share_a_secret_of_their_own() -> None:
    settings = host_settings(find("A")(clients=3), Protection())
    assert sorted(settings) == ["client1", "client2", "client3", "server"]
    server = {tunnel.name: tunnel for tunnel in settings["server"].tunnels}
    secrets = set()
    for name in ("client1", "client2", "client3"):
        (tunnel,) = settings[name].tunnels
        peer = server[tunnel.name]
        assert tunnel.secret == peer.secret
        assert len(tunnel.secret) >= 32
        secrets.add(tunnel.secret)
        assert (tunnel.local_network, tunnel.remote_network) == (peer.remote_network, peer.local_network)
        assert (tunnel.peer_identity, peer.peer_identity) == (settings["server"].identity, settings[name].identity)
        assert tunnel.peer_address == settings["server"].address
        assert peer.peer_address is None, "behind a NAT a client may come from anywhere"
    assert len(secrets) == len(server) == 3


def test_every_run_has_new_secrets_and_shows_none() -> None:
    scenario = find("A")()
    first, second = (host_settings(scenario, Protection())["server"] for _ in range(2))
    secrets = {tunnel.secret for settings in (first, second) for tunnel in settings.tunnels}
    assert len(secrets) == 4
    shown = f"{first!r} {first} {first.tunnels!r}"
    assert "client1-server" in shown
    assert not any(secret in shown for secret in secrets)


def test_the_protection_of_a_run_reaches_both_ends() -> None:
    asked = Protection("aes256-sha384-modp2048", "aes256-sha256", "none", "always", "transport", "aggressive", "rsa")
    settings = host_settings(find("A")(clients=1), asked)
    for host in ("client1", "server"):
        (tunnel,) = settings[host].tunnels
        suites = (tunnel.ike_suite, tunnel.esp_suite, tunnel.pfs, tunnel.encapsulation)
        assert Protection(*suites, tunnel.mode, tunnel.exchange, tunnel.authentication) == asked


def configuration(settings: HostSettings) -> dict[str, Any]:
    return tomllib.loads(_toml(settings, pathlib.Path("/run/x.sock"), pathlib.Path("/evidence/client1")))


def test_what_is_not_asked_for_is_left_to_the_implementation() -> None:
    (tunnel,) = configuration(host_settings(find("A")(clients=1), Protection())["client1"])["connection"]
    timing = {"dpd", "keepalive", "keepalive_tail", "ike_lifetime", "esp_lifetime", "esp_octets", "rekey_overlap"}
    assert not tunnel.keys() & {*timing, "rebinding", "start", "retransmit"}
    assert (tunnel["mode"], tunnel["exchange"], tunnel["authentication"]) == ("tunnel", "main", "psk")
    assert (tunnel["local_network"], tunnel["remote_network"]) == ("192.168.1.11/32", "10.99.0.1/32")


@pytest.mark.parametrize(("host", "starts"), [("client1", True), ("server", None)])
def test_transport_mode_with_certificates_has_no_networks_and_no_secret(host: str, starts: bool | None) -> None:
    folder = pathlib.Path("/evidence/client1")
    files = Credentials(folder / "certificate.pem", folder / "private_key.pem", folder / "ca.pem")
    timing = Timing(
        dpd=1, keepalive=0.5, keepalive_tail=3, esp_lifetime=30, rebinding="authenticated", start=True, ike_tries=3
    )
    asked = Protection(mode="transport", exchange="aggressive", authentication="rsa")
    read = configuration(host_settings(find("A")(clients=1), asked, timing, {host: files})[host])
    assert (read["local"]["certificate"], read["local"]["ca"]) == ("certificate.pem", "ca.pem")
    (tunnel,) = read["connection"]
    assert not tunnel.keys() & {"local_network", "remote_network", "psk"}
    assert (tunnel["mode"], tunnel["exchange"], tunnel["authentication"]) == ("transport", "aggressive", "rsa")
    assert (tunnel["dpd"], tunnel["keepalive"], tunnel["esp_lifetime"]) == (1, 0.5, 30)
    assert (tunnel["rebinding"], tunnel.get("start")) == ("authenticated", starts), "a responder cannot begin"
    assert tunnel["retransmit"] == {"tries": 3}


def test_tunnels_of_the_same_two_gateways_share_their_key() -> None:
    settings = host_settings(find("F")(clients=2), Protection())
    assert sorted(settings) == ["corpgw", "homegw"], "hosts of their LANs know nothing of it"
    for host in settings.values():
        assert len(host.tunnels) == 4
        assert len({tunnel.secret for tunnel in host.tunnels}) == 1
    home = {tunnel.name: tunnel for tunnel in settings["homegw"].tunnels}
    assert (home["client2-server1"].local_network, home["client2-server1"].remote_network) == (
        "10.1.0.12/32",
        "10.2.0.11/32",
    )
    assert settings["homegw"].forwards == Forwards("homegw-eth1", ("10.2.0.11/32", "10.2.0.12/32"))
    assert host_settings(find("A")(), Protection())["server"].forwards is None


def test_only_the_responder_translates_and_only_in_tunnel_mode() -> None:
    settings = host_settings(find("E")(), Protection())
    assert (settings["server"].pool, settings["client1"].pool) == ("10.200.0.0/24", None)
    read = configuration(settings["server"])
    assert read["local"]["pool"] == "10.200.0.0/24"
    assert all(tunnel["translate"] for tunnel in read["connection"])
    (tunnel,) = configuration(settings["client1"])["connection"]
    assert "translate" not in tunnel
    assert tunnel["local_network"] == "192.168.1.11/32"
    transport = configuration(host_settings(find("E")(), Protection(mode="transport"))["server"])
    assert "pool" not in transport["local"]
