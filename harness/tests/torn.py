"""A Ctrl-C at each instruction of a function, one after another: what tears by chance elsewhere tears here surely."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def interrupted_everywhere(function: Callable[[], object]) -> Iterator[int]:
    """Call the function again and again, each time with SIGINT one instruction later; yields after each interrupt."""
    for instruction in itertools.count():
        interrupt = _Interrupt(instruction)
        sys.settrace(interrupt.trace)
        try:
            function()
        except KeyboardInterrupt:
            yield instruction
        else:
            return  # it has no more instructions
        finally:
            sys.settrace(None)


class _Interrupt:
    def __init__(self, after: int) -> None:
        self._left = after

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == -1:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self.trace
