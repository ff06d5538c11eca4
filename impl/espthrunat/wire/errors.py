"""The one error that parsing raises."""

from __future__ import annotations


class ParseError(ValueError):
    """Octets that are not what they claim to be.

    `payload` names the part that is wrong ("header", "SA", "NAT-D", ...), `offset` counts octets from the start of
    what was given to the parser, `reason` says what was found.
    """

    def __init__(self, payload: str, offset: int, reason: str) -> None:
        super().__init__(f"{payload} at octet {offset}: {reason}")
        self.payload = payload
        self.offset = offset
        self.reason = reason
