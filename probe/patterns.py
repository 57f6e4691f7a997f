"""Regular expressions that a user or a manifest gives, with a time limit: a search ends, or is a stated error."""

from __future__ import annotations

from collections.abc import Iterator

import regex

from probe.errors import BadOption

SECONDS = 2.0  # for one text
_LONGEST = 10_000  # characters of an expression


class Pattern:
    """A regular expression in Python's syntax. Raises `BadOption` for one that is none, and where a search takes too long."""

    def __init__(self, written: str, *, hint: str) -> None:
        self.written, self._hint = written, hint
        try:
            if len(written) > _LONGEST:
                raise ValueError(f"it has {len(written):,} characters")
            self._compiled = regex.compile(written)
        except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
            short = written if len(written) <= 80 else written[:80] + "…"
            raise BadOption(f"'{short}' is not a regular expression: {error}", hint=hint) from error

    def search(self, text: str) -> tuple[int, int] | None:
        """Characters [start, end) of the first match."""
        return next(self._found(text, group=False), None)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Characters of every match."""
        return self._found(text, group=False)

    def groups(self, text: str) -> Iterator[tuple[int, int]]:
        """Characters of each match's first group, or of all of it where there is no group or it took no part."""
        return self._found(text, group=True)

    def _found(self, text: str, *, group: bool) -> Iterator[tuple[int, int]]:
        grouped = group and self._compiled.groups > 0
        try:
            for match in self._compiled.finditer(text, timeout=SECONDS):
                yield match.span(1) if grouped and match.start(1) >= 0 else match.span()
        except TimeoutError as error:
            raise BadOption(
                f"the regular expression '{self.written[:80]}' takes more than {SECONDS:g} s on {len(text):,} characters",
                hint="repeats inside repeats, as in (a+)+, make it slow: write it without; " + self._hint,
            ) from error
