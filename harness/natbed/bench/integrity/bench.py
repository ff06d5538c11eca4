"""Bulk transfers both ways through scenario A's tunnel, over a link as it is and over impaired ones."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from natbed.bench.machine import this_machine
from natbed.checks import Verdict, flows
from natbed.checks.flows import End
from natbed.impairing import asked
from natbed.impairments.base import ImpairmentError
from natbed.impairments.link import ImpairedLink
from natbed.judging import Judge
from natbed.lab import Lab, LabError
from natbed.runner import LAB_ERRORS
from natbed.settings import Protection, host_settings
from natbed.stacks.base import Daemons, Stack, StackError
from natbed.topology_files import find
from natbed.tunnels import connect, running

from .record import MEGA, IntegrityRecord, Passage, Transfer, conclude, judge
from .transfer import transfer

NAME = "bench-integrity"  # of the folder of evidence
SCENARIO = "A"
UNIMPAIRED = "unimpaired"
DEFAULT_LINKS = (UNIMPAIRED, "loss 1 %", "delay 2 ms reorder 5 %", "corrupt 0.1 %")
_TOLD = 20  # parts of a transfer, after each of which progress is told


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send over which links: `links` are UNIMPAIRED or the words of an impairment."""

    octets: int
    suite: str
    links: tuple[str, ...] = DEFAULT_LINKS


def check_link(words: str) -> None:
    """Raises ImpairmentNameError for what is neither UNIMPAIRED nor an impairment."""
    if words != UNIMPAIRED:
        asked(find(SCENARIO)(clients=1), words)


class IntegrityBench:
    """A benchmark on its way: `run` sends, `record` says what there is until now."""

    def __init__(self, plan: Plan, stack: Stack, folder: pathlib.Path, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._stack = stack
        self._folder = folder
        self._progress = progress
        self._started = datetime.datetime.now().astimezone()
        self._begin = time.monotonic()
        self._machine = this_machine()
        self._passages: list[Passage] = []

    def run(self) -> Iterator[IntegrityRecord]:
        """Send over one link after the other, and yield the record after each."""
        for link in self._plan.links:
            self._passages.append(self._over(link))
            yield self.record()

    def record(self) -> IntegrityRecord:
        """Everything until now."""
        verdict, reason = conclude(self._passages, len(self._plan.links) - len(self._passages))
        return IntegrityRecord(
            started=self._started.isoformat(timespec="milliseconds"),
            scenario=SCENARIO,
            suite=self._plan.suite,
            octets=self._plan.octets,
            took=round(time.monotonic() - self._begin, 3),
            machine=self._machine,
            passages=list(self._passages),
            verdict=verdict,
            reason=reason,
        )

    def _over(self, link: str) -> Passage:
        self._say(link, "building the network")
        try:
            with Lab(find(SCENARIO)(clients=1)) as lab:
                return self._through(lab, link)
        except StackError as error:
            return Passage(link=link, verdict=Verdict.FAILED, reason=str(error))
        except (*LAB_ERRORS, ImpairmentError, flows.LabError) as error:
            return Passage(link=link, verdict=Verdict.LAB_BROKEN, reason=str(error))

    def _through(self, lab: Lab, link: str) -> Passage:
        protection = Protection(esp_suite=self._plan.suite)
        nats = Judge(lab, protection, 1).nats()
        if not nats.passed:
            raise LabError(f"NAT: {nats.reason}")
        evidence = self._folder / link.replace(" ", "-").replace("%", "percent")
        with running(self._stack, lab, host_settings(lab.scenario, protection), evidence) as daemons:
            connect(lab.scenario.tunnels(), daemons)
            with contextlib.ExitStack() as impaired:
                links = []
                if link != UNIMPAIRED:
                    one, other, impairment = asked(lab.scenario, link)
                    for way in ((one, other), (other, one)):
                        links.append(impaired.enter_context(ImpairedLink(lab, *way, impairment)))
                transfers = self._transfers(lab, link, daemons)
        verdict, reason = judge(transfers, self._plan.octets)
        return Passage(link=link, transfers=transfers, links=links, verdict=verdict, reason=reason)

    def _transfers(self, lab: Lab, link: str, daemons: Daemons) -> list[Transfer]:
        """Both ways at once. Raises StackError where a daemon has died."""
        judge = Judge(lab, Protection(esp_suite=self._plan.suite), 1)
        (row,) = judge.rows()
        path = judge.tunnel_path(row)
        client = End(path.client, path.client_address)
        server = End(path.server, path.server_address, path.dialed)
        arrived: dict[str, int] = {}

        def told(way: str) -> Callable[[int], None]:
            def tell(octets: int) -> None:
                part = max(self._plan.octets // _TOLD, 1)
                if octets // part > arrived.get(way, 0) // part:
                    arrived[way] = octets
                    self._say(link, f"{octets / MEGA:.0f} of {self._plan.octets / MEGA:g} MB {way}")

            return tell

        with ThreadPoolExecutor(2, thread_name_prefix="transfer") as pool:
            begun = [
                pool.submit(transfer, way, begin, end, self._plan.octets, told(way))
                for way, begin, end in (("to the server", client, server), ("to the client", server, client))
            ]
            done = [one.result() for one in begun]
        for daemon in daemons.values():
            daemon.status()
        return done

    def _say(self, link: str, what: str) -> None:
        self._progress(f"{len(self._passages) + 1} of {len(self._plan.links)}, {link}: {what}")
