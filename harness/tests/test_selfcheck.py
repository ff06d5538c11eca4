"""A NAT's own proof: what reaches the server must be what was declared, or the lab is broken."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from natbed.checks import CheckResult, Verdict
from natbed.nat import selfcheck
from natbed.nat.selfcheck import check_translation

T = TypeVar("T")
SERVER = "127.0.0.9"
pytestmark = pytest.mark.usefixtures("isolated")  # fixed ports on loopback addresses: of this process's own loopback


class Here:
    """A node that is this process."""

    def __init__(self, name: str) -> None:
        self.name = name

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        raise NotImplementedError

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        raise NotImplementedError


class Deaf(Here):
    """A server whose socket nothing reaches."""

    def call(self, function: Callable[[], T]) -> T:
        with socket.socket() as made:
            function().close()  # type: ignore[attr-defined]
            made.bind(("127.0.0.8", 0))
        return selfcheck._bound("127.0.0.8", 0)  # type: ignore[return-value]


def judge(*addresses: str, public: str | None = None, server: Here | None = None) -> CheckResult:
    clients = [(Here(f"client{n + 1}"), address) for n, address in enumerate(addresses)]
    return check_translation(clients, server or Here("server"), SERVER, public)


def test_a_plain_router_shows_every_client_as_it_is() -> None:
    result = judge("127.0.0.2", "127.0.0.3")
    assert (result.name, result.verdict, result.reason) == ("NAT", Verdict.PASSED, "nothing is translated")
    assert result.details["seen"] == {"client1": "127.0.0.2:40000", "client2": "127.0.0.3:40000"}


def test_a_nat_that_does_not_translate_is_a_broken_lab() -> None:
    result = judge("127.0.0.2", public="203.0.113.2")
    assert (result.verdict, result.reason) == (
        Verdict.LAB_BROKEN,
        "client1 shows as 127.0.0.2, declared was 203.0.113.2",
    )


def test_clients_that_share_a_mapping_are_a_broken_lab() -> None:
    result = judge("127.0.0.2", "127.0.0.2")
    assert result.verdict is Verdict.LAB_BROKEN
    assert result.reason.startswith("clients share a mapping")


def test_silence_is_a_broken_lab_that_names_who_was_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "DEADLINE", 0.05)
    result = judge("127.0.0.2", server=Deaf("server"))
    assert result.verdict is Verdict.LAB_BROKEN
    assert result.reason == "nothing from client1 reached the server within 0.05 s"


@pytest.mark.parametrize("address", ["192.0.2.77"], ids=["an address that the client does not have"])
def test_what_cannot_be_sent_is_a_broken_lab(address: str) -> None:
    result = judge(address)
    assert result.verdict is Verdict.LAB_BROKEN
    assert "Cannot assign requested address" in result.reason
