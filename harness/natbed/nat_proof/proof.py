"""Each NAT as it is declared, as it is measured from outside, and what the witness says of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from natbed.lab import Lab
from natbed.nat.behaviour import opener_on
from natbed.nat.fingerprint import FingerprintError, Open, Surveyor
from natbed.nat.measured import Fingerprint, unseen
from natbed.nat.profile import NatProfile
from natbed.nat.reflector import Reflector
from natbed.nat.timeouts import measure_timeouts
from natbed.passing_through import check_quirk_of

from . import witness
from .network import Street
from .witness import Interview, Word

_FIRST_PORT = 5_100  # of the reflectors, two for each NAT
_TICK = 0.5  # seconds between words to a user


class ProofError(Exception):
    """A NAT cannot be measured: the message names it."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """One NAT. `unseen` are the fields that no fingerprint tells, with the reasons; all others must be equal.

    `witness` is None where the witness was not asked; `quirk` is what its own check says against a quirk, or "".
    """

    declared: NatProfile
    measured: NatProfile
    unseen: dict[str, str]
    witness: Word | None = None
    quirk: str = ""

    @property
    def differences(self) -> list[str]:
        """What is not as declared, in words."""
        return list(self._differences())

    def _differences(self) -> Iterator[str]:
        for field in seen(self.unseen):
            declared, measured = getattr(self.declared, field), getattr(self.measured, field)
            if declared != measured:
                yield f"{field}: declared {declared}, measured {measured}"
        if self.witness is not None:
            wanted = witness.expected(self.declared)
            for field in ("mapping", "filtering", "hairpins"):
                declared, said = getattr(wanted, field), getattr(self.witness, field)
                if declared != said:
                    yield f"{field}: declared {declared}, {witness.CLIENT} says {said}"
        if self.quirk:
            yield self.quirk


def seen(left_out: dict[str, str]) -> list[str]:
    """A profile's fields without those."""
    return [field for field in NatProfile.__struct_fields__ if field not in left_out]


def prove(
    profiles: Sequence[NatProfile],
    patience: float,
    *,
    timeouts: bool = False,
    ask_witness: bool = True,
    quirks: bool = True,
    say: Callable[[str], None] = lambda _step: None,
) -> list[Proof]:
    """Build all NATs at once and measure them side by side, in isolation already.

    An answer may take `patience` seconds, while all are under way. With `timeouts` these too, which takes as long as
    the longest is; with `quirks` each quirk by its own check, one after the other. Raises `ProofError`,
    `WitnessError` or the lab's own errors.
    """
    say(f"building {len(profiles)} NATs")
    with Lab(street := Street(nats=profiles)) as lab:
        internet = lab["internet"]
        own = [address.partition("/")[0] for address in internet.addresses() if not address.startswith("127.")]
        addresses = (own[-1], own[0])
        with contextlib.ExitStack() as stack:
            interviews = []
            if ask_witness:
                stack.enter_context(witness.serving(internet, addresses))
                for _, host in map(street.hosts_behind, street.nat_names):
                    interviews.append(Interview(lab[host.name], host.address, addresses[0]))
            found = _surveyed(lab, street, addresses, timeouts, patience, say)
            if interviews:
                say(f"waiting for {witness.CLIENT}")
            words = [interview.word() for interview in interviews]
        return [
            Proof(
                declared=profile,
                measured=one.profile(profile.name),
                unseen=unseen(profile, timeouts=timeouts),
                witness=words[number] if words else None,
                quirk=_quirk(lab, street, nat, say) if quirks else "",
            )
            for number, (nat, profile, one) in enumerate(zip(street.nat_names, profiles, found, strict=True))
        ]


def _surveyed(
    lab: Lab,
    street: Street,
    addresses: tuple[str, str],
    timeouts: bool,
    patience: float,
    say: Callable[[str], None],
) -> list[Fingerprint]:
    """By what `natbed fingerprint` does on one host behind each NAT, with a reflector for each."""
    stop = threading.Event()

    def still_wanted(_step: str) -> None:
        if stop.is_set():
            raise FingerprintError("interrupted")

    with contextlib.ExitStack() as stack:
        places: list[tuple[Open, tuple[str, int]]] = []
        for number, nat in enumerate(street.nat_names):
            ports = (_FIRST_PORT + 2 * number, _FIRST_PORT + 2 * number + 1)
            stack.enter_context(lab["internet"].call(lambda ports=ports: Reflector(addresses, ports)))  # type: ignore[misc]
            host = street.hosts_behind(nat)[0]
            places.append((opener_on(lab[host.name], host.address), (addresses[0], ports[0])))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(max(1, len(places))))
        stack.callback(stop.set)  # before the pool waits for its threads

        def survey(number: int) -> Fingerprint:
            inside, server = places[number]
            return Surveyor(inside, server, patience, say=still_wanted).measure()

        def wait(number: int) -> Fingerprint:
            inside, server = places[number]
            profile = street.nats_planned[street.nat_names[number]].profile
            if "udp_timeout" in unseen(profile):
                return found[number]
            longest = max(profile.udp_timeout, profile.udp_timeout_stream)  # one idle time beyond it is tried too
            unreplied, replied = measure_timeouts(inside, server, patience, longest, still_wanted)
            return msgspec.structs.replace(found[number], udp_timeout=unreplied, udp_timeout_stream=replied)

        found = _all(pool, survey, street, "measuring", say)
        # after all surveys: so many sockets at once are more than select takes
        return _all(pool, wait, street, "waiting for NATs to forget:", say) if timeouts else found


def _all(
    pool: concurrent.futures.Executor,
    work: Callable[[int], Fingerprint],
    street: Street,
    what: str,
    say: Callable[[str], None],
) -> list[Fingerprint]:
    """Do the work for each NAT. Raises `ProofError` for the first that fails."""
    begin = time.monotonic()
    futures = [pool.submit(work, number) for number in range(len(street.nat_names))]
    while (left := concurrent.futures.wait(futures, _TICK, concurrent.futures.FIRST_EXCEPTION).not_done) and not any(
        one.done() and one.exception() for one in futures
    ):
        say(f"{what} {len(futures) - len(left)} of {len(futures)} NATs done, {time.monotonic() - begin:.0f} s")
    for name, future in zip(street.nat_names, futures, strict=True):
        if future.done() and (error := future.exception()) is not None:
            profile = street.nats_planned[name].profile
            raise ProofError(f"{profile.name} cannot be measured: {error}") from error
    return [future.result() for future in futures]


def _quirk(lab: Lab, street: Street, nat: str, say: Callable[[str], None]) -> str:
    """What the check of its own says against a quirk, which no fingerprint sees; "" if nothing."""
    quirk = street.nats_planned[nat].profile.quirk
    if quirk is None:
        return ""
    say(f"the quirk {quirk}")
    clients = [(lab[host.name], host.address) for host in street.hosts_behind(nat)]
    result = check_quirk_of(lab.nat(nat), quirk, clients, lab.host("server"))
    return "" if result.passed else result.reason
