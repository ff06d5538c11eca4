"""What of the matrix cannot be run, or would say nothing, and why: one rule an axis."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .faults.names import FaultNameError
from .impairing import asked
from .impairments.names import ImpairmentNameError
from .lab import LabError
from .matrix_cells import NO_FAULT, UNIMPAIRED, profile_of, words
from .nat.passthrough_presets import PASSTHROUGH
from .nat.profile import Kind
from .passing_through import unsuitable
from .run_options import RunOptions
from .scenario import Scenario
from .settings import Protection

ESP_IN_UDP_ONLY = frozenset({"marker", "checksum", "replay", "forge"})  # faults of its packets
NOTHING_ELSE = "behind an IPsec-aware NAT each client is compared with what is declared of it, and nothing else"
_NOT_BUILT = "the scenario cannot be built"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Values that do not go together, and why."""

    what: str
    reason: str


Value = str | int
Values = Mapping[str, Value]  # by axis: that of the rule, and those of all rules before it
Rule = Callable[[type[Scenario], Values], Exclusion | None]


def _mode(scenario: type[Scenario], values: Values) -> Exclusion | None:
    mode = str(values["mode"])
    if mode in scenario.modes:
        return None
    reason = scenario.not_supported.get(mode, "the scenario does not have this mode")
    return Exclusion(f"{scenario.letter}, {mode}", reason)


def _clients(scenario: type[Scenario], values: Values) -> Exclusion | None:
    counts = scenario.client_counts if _varies(scenario, "clients") else scenario.client_counts[:1]
    if values["clients"] in counts:
        return None
    if len(counts) == 1:
        reason = "the number of its clients does not vary"
    else:
        reason = f"it is made for {_listed(counts)} clients"
    return Exclusion(f"{scenario.letter}, clients: {values['clients']}", reason)


def _nat(scenario: type[Scenario], values: Values) -> Exclusion | None:
    nat, mode = str(values["nat"]), str(values["mode"])
    nats = scenario.nats if _varies(scenario, "nat") else scenario.nats[:1]
    if nat not in nats:
        reason = f"its NATs can be {_listed(nats)}" if len(nats) > 1 else "what its NATs do does not vary"
        return Exclusion(f"{scenario.letter}, NAT: {nat}", reason)
    if reason := unsuitable(profile_of(nat), Protection(mode=mode)):
        return Exclusion(f"{scenario.letter}, {mode}, NAT: {nat}", reason)
    return None


def _rekey(scenario: type[Scenario], values: Values) -> Exclusion | None:
    # the idle checks need rekeys, and go with them
    aware, rekey = values["nat"] in PASSTHROUGH, values["rekey"]
    if aware == (rekey == "none"):
        return None
    reason = NOTHING_ELSE if aware else "only where nothing is looked at but how clients fare is nothing rekeyed"
    return Exclusion(f"{scenario.letter}, rekey: {rekey}, NAT: {'IPsec-aware' if aware else 'any other'}", reason)


def _fault(scenario: type[Scenario], values: Values) -> Exclusion | None:
    fault, nat, clients = str(values["fault"]), str(values["nat"]), int(values["clients"])
    if fault == NO_FAULT:
        return None
    if nat in PASSTHROUGH:
        return Exclusion(f"{scenario.letter}, any fault, NAT: IPsec-aware", NOTHING_ELSE)
    if fault.partition("-")[0] in ESP_IN_UDP_ONLY and profile_of(nat).kind is Kind.NONE:
        return Exclusion(f"{scenario.letter}, fault: {fault}, NAT: {nat}", "without a NAT no ESP is in UDP")
    if reason := _no_fault(scenario, clients, nat, fault):  # type: ignore[arg-type]  # a class can be hashed
        return Exclusion(f"{scenario.letter}, fault: {fault}", reason)
    return None


@functools.cache
def _no_fault(scenario: type[Scenario], clients: int, nat: str, fault: str) -> str:
    """Why a scenario cannot have a fault, as the fault itself says."""
    from .runner import planned_fault

    try:
        planned_fault(scenario, RunOptions(clients, profile_of(nat), fault=words(fault, NO_FAULT)))
    except FaultNameError as error:
        return str(error)
    except Exception as error:  # the user's own code; the cell without a fault shows where
        return f"{_NOT_BUILT}: {error}"
    return ""


def _impairment(scenario: type[Scenario], values: Values) -> Exclusion | None:
    impairment, nat = str(values["impairment"]), str(values["nat"])
    if impairment == UNIMPAIRED:
        return None
    if nat in PASSTHROUGH:
        return Exclusion(f"{scenario.letter}, any impairment, NAT: IPsec-aware", NOTHING_ELSE)
    if values["fault"] != NO_FAULT:
        # recovery is seen by the first datagram behind which none is lost: over a link that loses some there is none
        reason = "one thing at a time: else nobody could tell whose loss it is"
        return Exclusion(f"{scenario.letter}, a fault and an impairment", reason)
    if reason := _unimpaired(scenario, int(values["clients"]), nat, impairment):  # type: ignore[arg-type]  # as above
        return Exclusion(f"{scenario.letter}, impairment: {impairment}", reason)
    return None


@functools.cache
def _unimpaired(scenario: type[Scenario], clients: int, nat: str, impairment: str) -> str:
    """Why a scenario cannot have an impairment."""
    from .runner import planned_scenario

    try:
        asked(planned_scenario(scenario, RunOptions(clients, profile_of(nat))), words(impairment, UNIMPAIRED))
    except (ImpairmentNameError, LabError) as error:
        return str(error)
    except Exception as error:  # as above
        return f"{_NOT_BUILT}: {error}"
    return ""


RULES: dict[str, Rule] = {
    "mode": _mode,
    "clients": _clients,
    "nat": _nat,
    "rekey": _rekey,
    "fault": _fault,
    "impairment": _impairment,
}
"""By axis, each judged with the values of those before it. What no rule is about goes with everything."""


def _varies(scenario: type[Scenario], parameter: str) -> bool:
    return parameter in inspect.signature(scenario.build).parameters


def _listed(values: Iterable[object]) -> str:
    *most, last = [str(value) for value in values]
    return f"{', '.join(most)} or {last}" if most else last
