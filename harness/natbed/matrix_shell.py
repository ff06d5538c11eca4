"""A run that opens Mininet's command line where something went wrong, while the lab is still up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from .checks import Verdict
from .lab import Lab
from .runner import Run, conclude
from .shell import open_shell
from .stacks.base import Daemon


class OpenedRun(Run):
    """As `Run`. The shell opens once, while the daemons still run if what went wrong is known by then."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._opened = False

    def make_lab(self) -> Lab:
        """One that is looked at before it goes down."""
        return _OpenedLab(self)

    @contextlib.contextmanager
    def daemons(self) -> Iterator[dict[str, Daemon]]:
        """The same; before they are stopped, look at what went wrong."""
        with super().daemons() as running:
            try:
                yield running
            except Exception as error:
                self.look(str(error))
                raise
            self.look()

    def look(self, problem: str = "") -> None:
        """Open the shell if there is a problem, or a check has found one."""
        verdict, reason = conclude(self.checks)
        if self._opened or not (problem or (self.checks and verdict is not Verdict.PASSED)):
            return
        self._opened = True
        sys.stdout.write(f"\n{problem or reason}\nlogs in {self.folder}; `exit` goes on\n")
        open_shell(self.lab)


class _OpenedLab(Lab):
    def __init__(self, run: OpenedRun) -> None:
        super().__init__(run.scenario)
        self._run = run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.network is not None and (error is None or isinstance(error, Exception)):
                self._run.look(str(error or ""))
        finally:
            super().__exit__(kind, error, trace)
