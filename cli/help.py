"""`probe help`: the pages of the manual, as they stand in the installed package."""

from __future__ import annotations

import difflib
import re
import sys
from importlib.resources import files
from typing import Annotated

import typer

from . import printing
from .command import with_options
from .groups import Output

Topic = Annotated[
    str | None,
    typer.Argument(help="A command or a subject; without one, the topics are listed.", autocompletion=lambda: topics()),
]

INDEX = "README"
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
_MARKS = re.compile(r"<!--.*?-->\n?", flags=re.DOTALL)


@with_options
def command(output: Output, topic: Topic = None) -> None:
    """Show a page of the manual: how a command is used, what a table, a term or a method is."""
    from probe.errors import BadOption

    from .terminal import show_document

    pages = topics()
    if topic is not None and topic not in pages:
        near = difflib.get_close_matches(topic, pages, n=3)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise BadOption(f"there is no help on '{topic}'", hint=f"{meant}topics are: {', '.join(pages)}")
    text = page(topic or INDEX)
    if output.as_json:
        show_document({"command": "help", "summary": {"topic": topic, "topics": pages, "markdown": text}})
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        printing.console().print(Markdown(text))
    else:
        typer.echo(plain(text))


def topics() -> list[str]:
    """The names of all pages."""
    folder = files("probe.recipes") / "manual"
    names = [entry.name.removesuffix(".md") for entry in folder.iterdir() if entry.name.endswith(".md")]
    return sorted(set(names) - {INDEX})


def page(topic: str) -> str:
    """The Markdown of a page, without the marks around what is generated."""
    text = (files("probe.recipes") / "manual" / f"{topic}.md").read_text(encoding="utf-8")
    return _MARKS.sub("", text).strip() + "\n"


def plain(text: str) -> str:
    """Markdown as plain text: headings underlined, code indented, tables in columns, links by their words."""
    out: list[str] = []
    rows: list[list[str]] = []
    in_code = False
    for line in [*text.splitlines(), ""]:
        if line.startswith("|") and not in_code:
            rows.append([_words(cell.replace("\\|", "|").strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        out += _aligned(rows)
        rows = []
        heading = re.match(r"(#+) (.*)", line)
        if line.startswith("```"):
            in_code = not in_code
        elif in_code:
            out.append(f"    {line}".rstrip())
        elif heading:
            out += [_words(heading[2]), ("=" if heading[1] == "#" else "-") * len(_words(heading[2]))]
        else:
            out.append(_words(line))
    return "\n".join(out).rstrip()


def _words(text: str) -> str:
    """A line without the marks of links, code and emphasis; an address stays."""
    linked = _LINK.sub(lambda link: f"{link[1]} ({link[2]})" if "://" in link[2] else link[1], text)
    parts = linked.split("`")
    return "".join(part if i % 2 else part.replace("**", "").replace("\\", "") for i, part in enumerate(parts))


def _aligned(rows: list[list[str]]) -> list[str]:
    rows = [row for row in rows if set("".join(row)) - set("-: ")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
