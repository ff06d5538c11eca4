"""Which cells an expression means: `E and transport`, `not (3des* or routed)`, `A and 2`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .matrix import Cell, Extent, Matrix, MatrixError

_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")
_WORDS = frozenset({"and", "or", "not", "(", ")"})
Test = Callable[[Cell], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user asks for: cells by their ids, or an extent of the matrix; of these what the expression means."""

    extent: Extent = Extent.DEFAULT
    ids: tuple[str, ...] = ()
    expression: str = ""

    def of(self, matrix: Matrix) -> list[Cell]:
        """The cells. Raises `MatrixError` where there are none, or an id or a word of the expression names nothing."""
        cells = matrix.named(self.ids) if self.ids else matrix.take(self.extent)
        if self.expression:
            cells = select(cells, self.expression, lambda: matrix.cells)
            if not cells:
                raise MatrixError(f"-k {self.expression!r}: none of the cells of this matrix; --full has more")
        return cells


def select(cells: Sequence[Cell], expression: str, known: Callable[[], Sequence[Cell]]) -> list[Cell]:
    """Those of the cells that the expression is true for.

    A word is an axis' value or its part between hyphens, or a whole id; `*` and `?` stand for letters, case is ignored.
    Raises `MatrixError` for what is no expression, and for a word that is true neither for one of them nor for one of
    the `known` cells, which are looked at only if they must be.
    """
    parser = _Parser(expression)
    test = parser.parse()
    for word in parser.words:
        if not any(_means(word, cell) for cell in cells) and not any(_means(word, cell) for cell in known()):
            raise MatrixError(f"-k {expression!r}: no cell has {word!r}")
    return [cell for cell in cells if test(cell)]


def _means(word: str, cell: Cell) -> bool:
    pattern = word.lower()
    return any(fnmatch.fnmatchcase(value, pattern) for value in _names(cell))


def _names(cell: Cell) -> Iterable[str]:
    yield cell.id.lower()
    for value in cell.values:
        yield value.lower()
        yield from value.lower().split("-")


class _Parser:
    """expression: term {"or" term}; term: factor {"and" factor}; factor: "not" factor | "(" expression ")" | word."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = _TOKEN.findall(expression)
        self.words: list[str] = []

    def parse(self) -> Test:
        test = self._any()
        if self._tokens:
            self._refuse()
        return test

    def _any(self) -> Test:
        tests = [self._all()]
        while self._accept("or"):
            tests.append(self._all())
        return lambda cell: any(test(cell) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._accept("and"):
            tests.append(self._one())
        return lambda cell: all(test(cell) for test in tests)

    def _one(self) -> Test:
        if self._accept("not"):
            negated = self._one()
            return lambda cell: not negated(cell)
        if self._accept("("):
            inner = self._any()
            if not self._accept(")"):
                self._refuse()
            return inner
        if not self._tokens or self._tokens[0].lower() in _WORDS:
            self._refuse()
        word = self._tokens.pop(0)
        self.words.append(word)
        return lambda cell: _means(word, cell)

    def _accept(self, word: str) -> bool:
        if self._tokens and self._tokens[0].lower() == word:
            self._tokens.pop(0)
            return True
        return False

    def _refuse(self) -> None:
        where = f"at {self._tokens[0]!r}" if self._tokens else "at its end"
        raise MatrixError(f"-k {self._expression!r}: no expression {where}; say for example 'E and not transport'")
