"""The proof as people read it: in a terminal, in a pipe, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rich.box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from natbed.nat.measured import NOT_ASKED
from natbed.nat.profile import Filtering, Hairpinning, Kind, Late, Mapping, NatProfile

from . import witness
from .proof import Proof
from .witness import Word

HEAD = ("NAT", "declared", "measured", witness.CLIENT, "")
LEGEND = (
    "RFC 4787: EIM, ADM, APDM: endpoint-independent, address-dependent, address- and port-dependent mapping; EIF, ADF,",
    "APDF: filtering; then hairpinning, the ports of mappings, what becomes of what is kept out, UDP timeouts",
    "unreplied/replied. Compared is what both sides show, and besides that kind, pooling and UDP without checksum.",
)
_MAPPING = {
    Mapping.NONE: "no NAT",
    Mapping.ENDPOINT_INDEPENDENT: "EIM",
    Mapping.ADDRESS_DEPENDENT: "ADM",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "APDM",
}
_FILTERING = {
    Filtering.NONE: "no filter",
    Filtering.ENDPOINT_INDEPENDENT: "EIF",
    Filtering.ADDRESS_DEPENDENT: "ADF",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "APDF",
}
_LATE = {Late.DROPPED: "drops", Late.REJECTED: "rejects"}
_HAIRPINS = {True: "hairpins", False: "no hairpin", None: "-"}


def show(proofs: Sequence[Proof]) -> None:
    """Print the table, what differs, and what no fingerprint sees."""
    console = Console(highlight=False)
    table = Table(*(Column(head, overflow="fold") for head in HEAD), box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for proof in proofs:
        *cells, verdict = row(proof)
        table.add_row(*cells, Text(verdict, style="red" if proof.differences else "green"))
    if not console.is_terminal:
        console.width = max(80, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(table, markup=False)
    for line in remarks(proofs):
        console.print(line, markup=False, soft_wrap=True)
    verdict, colour = ("equal", "green") if equal(proofs) else ("different", "red")
    console.print(Text.assemble("verdict   ", (verdict, f"bold {colour}")))


def equal(proofs: Sequence[Proof]) -> bool:
    """Whether nothing differs anywhere."""
    return not any(proof.differences for proof in proofs)


def row(proof: Proof) -> tuple[str, ...]:
    """The cells of one NAT, the verdict last."""
    quirk = "" if proof.declared.quirk is None or proof.differences else f"; quirk {proof.declared.quirk} proved"
    return (
        proof.declared.name,
        _words(proof.declared, {}),
        _words(proof.measured, proof.unseen),
        _said(proof.witness) if proof.witness else "not asked",
        f"{'DIFFERENT' if proof.differences else 'equal'}{quirk}",
    )


def remarks(proofs: Sequence[Proof]) -> Iterator[str]:
    """What differs, what the words mean, and what was not seen, with the reasons."""
    for proof in proofs:
        yield from (f"{proof.declared.name}: {difference}" for difference in proof.differences)
    yield from LEGEND
    left_out: dict[tuple[str, str], list[str]] = {}
    for proof in proofs:
        for field, reason in proof.unseen.items():
            left_out.setdefault((field, reason), []).append(proof.declared.name)
    for (field, reason), names in left_out.items():
        where = f" of {', '.join(names)}" if len(names) < len(proofs) and reason != NOT_ASKED else ""
        yield f"not measured: {field}{where}: {reason}"


def as_markdown(proofs: Sequence[Proof]) -> str:
    """The same as a Markdown document."""
    head = ("NAT", "declared", "measured", f"`{witness.CLIENT}`", "verdict")
    lines = ["# NATs, declared and measured", "", _line(head), _line(("---",) * len(head))]
    lines += [_line((f"`{cells[0]}`", *cells[1:])) for cells in map(row, proofs)]
    lines += ["", f"Verdict: {'equal' if equal(proofs) else 'different'}", "", *(f"- {one}" for one in remarks(proofs))]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(profile: NatProfile, unseen: dict[str, str]) -> str:
    if profile.kind is Kind.NONE:
        return f"{_MAPPING[profile.mapping]}, {_FILTERING[profile.filtering]}"
    words = [_behaviour(profile.mapping, profile.filtering, profile.hairpinning is not Hairpinning.NONE)]
    words.append(profile.ports)
    words.append("-" if "late" in unseen else _LATE[profile.late])
    timeouts = f"{profile.udp_timeout}/{profile.udp_timeout_stream} s"
    words.append("-" if "udp_timeout" in unseen else timeouts)
    if profile.kind is Kind.ONE_TO_ONE:
        words.append("1:1")
    return ", ".join(words)


def _said(word: Word) -> str:
    if word.mapping is Mapping.NONE:
        return f"{_MAPPING[word.mapping]}, {_FILTERING[word.filtering]}"
    return _behaviour(word.mapping, word.filtering, word.hairpins)


def _behaviour(mapping: Mapping, filtering: Filtering, hairpins: bool | None) -> str:
    return f"{_MAPPING[mapping]} {_FILTERING[filtering]} {_HAIRPINS[hairpins]}"
