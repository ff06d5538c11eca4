"""Impairments as a user writes them in the shell: "internet nat delay 30 ms loss 5 %"."""

from __future__ import annotations

from .base import Impairment

HELP = """\
impair FROM TO WHAT ..., packets from one node to its neighbour; `impair off` ends all. WHAT is one or more of
loss 5 %        nth 10           lose a share, or each tenth
delay 30 ms     jitter 5 ms      hold them, by so much more or less
reorder 2 %                      let some overtake those that are held
duplicate 1 %   corrupt 1 %      send some twice, change a bit of some
rate 10 Mbit/s  mtu 1400         let no more through, or none longer
fragments                        drop those that are fragments"""

_UNITS = {"%": 0.01, "ms": 0.001, "s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_NUMBERS = {  # by the word: the field, and its unit where none is said; "" for a whole number
    "loss": ("loss", "%"),
    "nth": ("every_nth", ""),
    "delay": ("delay", "ms"),
    "jitter": ("jitter", "ms"),
    "reorder": ("reorder", "%"),
    "duplicate": ("duplicate", "%"),
    "corrupt": ("corrupt", "%"),
    "rate": ("rate", "Mbit/s"),
    "mtu": ("mtu", ""),
    "seed": ("seed", ""),
}


class ImpairmentNameError(ValueError):
    """That is no impairment; the message is one line."""


def parse_impairment(text: str) -> tuple[str, str, Impairment]:
    """The two nodes and the impairment that a user means. Raises `ImpairmentNameError`."""
    sender, receiver, *left = [*text.split(), "", ""][: max(len(text.split()), 2)]
    if not receiver or not left:
        raise ImpairmentNameError("impair FROM TO WHAT ...; `help impair` says what there is")
    fields: dict[str, float | int | bool] = {}
    while left:
        word = left.pop(0)
        if word == "fragments":
            fields["drop_fragments"] = True
            continue
        if word not in _NUMBERS:
            raise ImpairmentNameError(f"no impairment {word!r}; there are {', '.join(_NUMBERS)}, fragments")
        name, unit = _NUMBERS[word]
        number = left.pop(0) if left else ""
        given = max((one for one in _UNITS if number.endswith(one)), key=len, default="")  # 5% as well as 5 %
        number = number.removesuffix(given)
        if unit and not given and left and left[0] in _UNITS:
            given = left.pop(0)
        if not number.replace(".", "", 1).isdecimal() or (not unit and (given or "." in number)):
            takes = f"a number, in {unit}" if unit else "a whole number"
            raise ImpairmentNameError(f"{word} {number + given or 'what'}: it takes {takes}")
        fields[name] = float(number) * _UNITS[given or unit] if unit else int(number)
    try:
        return sender, receiver, Impairment(**fields)  # type: ignore[arg-type]
    except ValueError as error:
        raise ImpairmentNameError(str(error)) from None
