"""Made-up benchmarks: candidates, samples, and the record that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natbed.bench.candidates import Candidate, Field
from natbed.bench.record import (
    TRAINS,
    Machine,
    Problem,
    Sample,
    ThroughputRecord,
    conclude,
    figures,
    ratios,
)
from natbed.bench.visit import Program

PLAIN = Candidate(name="plain")
OURS = Candidate(name="espthrunat aes128-sha1", implementation="espthrunat", suite="aes128-sha1")
SLOW = Candidate(
    name="espthrunat aes128-sha1, no batches", implementation="espthrunat", suite="aes128-sha1", batches=False
)
THEIRS = Candidate(name="strongswan aes128-sha1", implementation="strongswan", suite="aes128-sha1")
FIELD = Field((PLAIN, OURS, SLOW, THEIRS), {})
PROGRAM = Program(seconds=2)


def samples(values: Mapping[tuple[str, str], Sequence[float | None]], wire: str = TRAINS) -> list[Sample]:
    """From (candidate, quantity) to a value a round; None where there is none."""
    return [
        Sample(round=number, candidate=candidate, wire=wire, quantity=quantity, value=value)
        for (candidate, quantity), each in values.items()
        for number, value in enumerate(each, start=1)
        if value is not None
    ]


def everything(rounds: int = 3) -> list[Sample]:
    """All that the program promises, the same in each round but for some percent."""
    base = {
        "tcp_forward": 800.0,
        "tcp_reverse": 760.0,
        "tcp_repeated": 0.0,
        "udp": 400.0,
        "ping": 104.0,
        "cpu_client": 4.0,
        "cpu_server": 6.0,
    }
    found = []
    for place, candidate in enumerate(FIELD.candidates, start=1):
        for wire, quantity in PROGRAM.expected(candidate):
            values = [base[quantity] / place * (1 + number / 20) for number in range(rounds)]
            found += samples({(candidate.name, quantity): values}, wire)
    return found


def record(taken: Sequence[Sample], problems: Sequence[Problem] = (), rounds: int = 3) -> ThroughputRecord:
    verdict, reason = conclude(taken, problems)
    expected = {candidate.name: PROGRAM.expected(candidate) for candidate in FIELD.candidates}
    return ThroughputRecord(
        started="2026-11-24T12:00:00.000+00:00",
        scenario="A",
        rounds=rounds,
        seconds=PROGRAM.seconds,
        took=60.0,
        machine=Machine(processors=2, kernel="6.1", python="3.11", natbed="0.1.0", congestion="cubic", load=0.5),
        versions={"strongswan": "5.9.8"},
        candidates=list(FIELD.candidates),
        left_out=[],
        samples=list(taken),
        problems=list(problems),
        figures=figures(expected, taken, problems),
        ratios=ratios(FIELD.pairs(), taken),
        verdict=verdict,
        reason=reason,
    )
