"""What each host is told: one secret a tunnel, known to its two ends and shown to nobody."""

from __future__ import annotations

from natbed.scenario import find
from natbed.settings import Protection, host_settings


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
    asked = Protection("aes256-sha384-modp2048", "aes256-sha256", "none", "always")
    settings = host_settings(find("A")(clients=1), asked)
    for host in ("client1", "server"):
        (tunnel,) = settings[host].tunnels
        assert Protection(tunnel.ike_suite, tunnel.esp_suite, tunnel.pfs, tunnel.encapsulation) == asked
