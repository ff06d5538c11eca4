"""The shell: Mininet's commands do what they say on a lab."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from natbed.lab import Lab
from natbed.shell import open_shell
from natbed.topology_files import find

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def lab(isolated: None) -> Iterator[Lab]:
    with Lab(find("A")()) as lab:
        yield lab


@pytest.fixture
def shell(lab: Lab, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*commands: str) -> str:
        reader, writer = os.pipe()
        os.write(writer, "\n".join((*commands, "exit", "")).encode())
        os.close(writer)
        with open(reader) as stdin:  # noqa: PTH123 - a descriptor
            open_shell(lab, stdin=stdin)
        captured = capfd.readouterr()
        return (captured.err + captured.out).replace("natbed> ", "")

    return run


def test_it_shows_the_network(shell: Callable[..., str]) -> None:
    assert "client1 client2 home internet nat server" in shell("nodes")
    assert "nat nat-eth0:internet-eth0 nat-eth1:home-eth1" in shell("net")
    assert "<Nat nat: nat-eth0:203.0.113.2,nat-eth1:192.168.1.1" in shell("dump")
    assert "client1-eth0<->home-eth2 (OK OK)" in shell("links")


def test_names_stand_for_addresses_that_answer(shell: Callable[..., str]) -> None:
    assert "64 bytes from 203.0.113.18" in shell("client1 ping -c 1 -W 2 server")
    assert "64 bytes from 192.168.1.12" in shell("nat ping -c 1 -W 2 client2")


def test_the_nats_rules_can_be_seen(shell: Callable[..., str]) -> None:
    assert "MASQUERADE" in shell("nat iptables -t nat -L -n -v")


def test_pingall_shows_that_nobody_reaches_in_through_the_nat(shell: Callable[..., str]) -> None:
    lines = shell("pingall").splitlines()
    assert "client1 -> client2 internet nat server " in lines
    assert "server -> X X internet nat " in lines
    assert lines[-1].startswith("*** Results: 20% dropped (16/20 received)")


def test_a_link_can_be_pulled_and_plugged_in_again(shell: Callable[..., str]) -> None:
    assert "Network is unreachable" in shell("link client1 home down", "client1 ping -c 1 -W 1 server")
    assert "64 bytes from" in shell("link client1 home up", "client1 ping -c 1 -W 2 server")


def test_a_fault_happens_on_command(shell: Callable[..., str], lab: Lab) -> None:
    assert "the NAT nat rebooted (" in shell("fault reboot nat")
    assert "reboot [NAT [SECONDS]]" in shell("help fault")
    assert "no fault 'burn'; there are reboot, " in shell("fault burn")
    assert "nothing runs on 'client1'; there are none" in shell("fault kill client1")


def test_a_link_is_impaired_until_it_is_said_to_be_no_more(shell: Callable[..., str], lab: Lab) -> None:
    said = shell("impair internet server nth 2", "server ip link", "impair off", "impair internet server fog 3")
    assert "every_nth by " in said
    assert "loss 0.5" in said
    assert "no impairment 'fog'; there are loss, " in said
    assert "loss 5 %" in shell("help impair")
    shell("impair internet server loss 50 %")  # and the shell ends
    for node in (lab["internet"], lab["server"]):
        assert "statistic" not in node.run(["iptables-save"]).stdout
        assert "netem" not in node.run(["tc", "qdisc"]).stdout
