"""The one place through which words leave: no character of theirs moves a cursor, turns a line or hides in it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from probe.errors import StorageFull

if TYPE_CHECKING:
    from rich.console import Console

# words of scripts from right to left, and what stands between two of them
_LEFTWARDS = re.compile(
    "(?:R(?:[.,:;!?]? ?(?=R))?)+".replace(
        "R", "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]"
    )
)
_KEPT = "\n\t\u200c\u200d"  # joiners make words and emoji what they are


def printable(text: str) -> str:
    """Text without controls (C0, C1), marks of direction and halves of characters: those are shown as Python writes them."""
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(c: str) -> bool:
    return c.isprintable() or c in _KEPT or unicodedata.category(c) == "Zs"  # spaces of every width


def _in_place(text: str) -> str:
    """Text in which a mark ends what is written from right to left: a terminal that turns such words would turn what stands
    beside them as well, the next cell of a table and the squares of a heat map."""
    return text if text.isascii() else _LEFTWARDS.sub("\\g<0>\u200e", text)


def in_a_line(text: str) -> str:
    """`printable`, newlines and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def as_json(document: Any) -> str:
    """One JSON document in one line; JSON knows no NaN and no infinity: they are null. What is not harmless is escaped."""
    from probe.durable import jsonable

    document = jsonable(document)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8", "surrogatepass")
    except (LookupError, UnicodeEncodeError):
        return json.dumps(document, allow_nan=False)
    return text if text.isprintable() else "".join(c if _harmless(c) else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    return json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f"


def complain(message: str, hint: str = "") -> None:
    """What went wrong and what to do: a line each, on standard error."""
    for name, text in (("error", message), ("hint", hint)):
        if text:
            line = re.sub(r"\s*\n\s*", " ", text.strip())
            print(printable(f"{name}: {line}"), file=sys.stderr)


class Stream(io.TextIOBase):
    """A stream over another: what the other's encoding has not is escaped, and (`escape`) all that is not `printable`."""

    def __init__(self, under: TextIO, *, escape: bool) -> None:
        self.under, self.escape = under, escape

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.under.encoding or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> BinaryIO:
        """Where bytes go that are no words."""
        return self.under.buffer

    def write(self, text: str) -> int:
        out = printable(text) if self.escape else text
        if not out:  # so click finds out what a stream takes: no words are lost
            return 0
        with self._stated():
            self.under.write(out.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with self._stated():
            self.under.flush()

    @contextmanager
    def _stated(self) -> Iterator[None]:
        """Raises `StorageFull` where words cannot be written, but for a reader who has gone."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            abandon(self.under)
            why = error.strerror or str(error)
            raise StorageFull(f"cannot write to standard output: {why}", hint="what was finished is kept") from error

    def isatty(self) -> bool:
        return self.under.isatty()

    def fileno(self) -> int:
        return self.under.fileno()

    def writable(self) -> bool:
        return True


def abandon(stream: TextIO) -> None:
    """What is still to be written there goes nowhere: not even the interpreter's last flush could be heard."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def guarded() -> Iterator[None]:
    """Everything that anyone writes to standard output and error goes through a `Stream` that escapes; to one that is closed,
    nowhere."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, sys.stderr = (s if isinstance(s, Stream) else Stream(s or nowhere, escape=True) for s in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def console(*, err: bool = False) -> Console:
    """rich on standard output (or error): its own colours go through, what it is given to show is `printable`."""
    from rich.console import Console
    from rich.segment import Segment

    class Escaping(Console):
        def render(self, *args: Any, **options: Any) -> Any:
            for text, style, control in super().render(*args, **options):
                yield Segment(text if control else _in_place(printable(text)), style, control)

    stream: Any = sys.stderr if err else sys.stdout
    own: Any = Stream(stream.under, escape=False) if isinstance(stream, Stream) else stream
    return Escaping(file=own)
