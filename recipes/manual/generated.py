"""The parts of the manual that are written from declarations: options, tables, sites, changes, errors, packages."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from probe.cli import main as shell
from probe.cli.tables import columns, file_of

HERE = Path(__file__).parent


def pages() -> dict[str, str]:
    """Every page of the manual as it stands, by its name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.md"))}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


@cache
def commands() -> dict[str, Any]:
    """Every command by its words: `trace`, `runs ls`, …"""
    import typer.main

    found: dict[str, Any] = {}
    root = typer.main.get_command(shell.app)
    for name, command in vars(root)["commands"].items():
        below = vars(command).get("commands")
        found |= {f"{name} {word}": one for word, one in below.items()} if below else {name: command}
    return found


def options(name: str) -> str:
    """The arguments and options of a command; of each command of a group."""
    found = {words: command for words, command in commands().items() if name in (words, words.split()[0])}
    parts = []
    for words, command in found.items():
        if words != name:
            parts.append(f"### probe {words}\n\n{' '.join((command.help or '').split())}")
        parts.append(table(("option", "default", "meaning"), [_option(parameter) for parameter in command.params]))
    return "\n\n".join(parts)


def _option(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    if not parameter.opts[0].startswith("-"):
        return parameter.metavar or parameter.opts[0].upper(), _default(default), parameter.help or ""
    if isinstance(default, bool):
        shown = "" if not parameter.secondary_opts else parameter.opts[0] if default else parameter.secondary_opts[0]
    else:
        shown = parameter.show_default if isinstance(parameter.show_default, str) else _default(default)
        names[-1] += " …"
    shown = "required" if parameter.required else shown
    if parameter.envvar:
        shown += f", or ${parameter.envvar}"
    return ", ".join(f"`{name}`" for name in names), shown, parameter.help or ""


def _default(value: Any) -> str:
    if value is None or callable(value) or value == () or value == []:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def tables_of(verb: str) -> str:
    """The tables that a verb's runs have, with their columns."""
    from probe.tables import TABLES

    rows = [
        (f"[{t.name}](tables.md#{t.name})", t.row, ", ".join(name for name, *_ in columns(t)[1:]))
        for t in TABLES.values()
        if verb in t.verbs
    ]
    return table(("table", "a row is", "columns"), rows)


def all_tables() -> str:
    """Each table with its columns and an example."""
    from probe.tables import TABLES

    parts = [table(("table", "a row is", "written by"), [
        (f"[{t.name}](#{t.name})", t.row, ", ".join(f"[{verb}]({verb}.md)" for verb in t.verbs)) for t in TABLES.values()
    ])]  # fmt: skip
    for one in TABLES.values():
        parts += [
            f"## {one.name}",
            f"A row is {one.row}. Key: {', '.join(one.keys)}. In `{file_of(one)}`.",
            table(("column", "type", "since", "meaning"), columns(one)),
            f"```sql\n{one.example}\n```",
        ]
    return "\n\n".join(parts)


def joined(version: str) -> str:
    """The columns that a version of the schema has first, by table."""
    from probe.tables import TABLES

    rows = []
    for one in TABLES.values():
        names = [f"`{column}`" for column, _, since, _ in columns(one)[1:] if since == version]
        if names:
            rows.append((f"[{one.name}](tables.md#{one.name})", ", ".join(names)))
    return table(("table", "columns that joined"), rows)


def sites() -> str:
    """Every site that a model can have."""
    from probe.sites import SITES

    rows = [(f"`{s.name}`", ", ".join(s.axes), s.doc, "" if s.per_layer else "one") for s in SITES.values()]
    return table(("site", "axes", "what it is", "layers"), rows)


def operations() -> str:
    """Every change that an edit can make: how it is written, what it computes."""
    from probe.registries.edit_operations import OPERATIONS

    return table(("written", "what it does"), [(f"`{one.form}`", one.help) for one in OPERATIONS.values()])


def step_edits() -> str:
    """Every edit of a step that a rewind can make."""
    from probe.registries.step_edits import STEP_EDITS

    rows = [(f"`{one.option}{' ' + one.metavar if one.metavar else ''}`", one.help) for one in STEP_EDITS.values()]
    return table(("edit", "what it does"), rows)


def head_kinds() -> str:
    """Every kind of attention head, and the number that makes a head one."""
    from probe.registries.head_kinds import KINDS

    rows = [(name, f"`{one.statistic}`", f"{one.side} {one.threshold:g}", one.doc) for name, one in KINDS.items()]
    return table(("kind", "statistic", "threshold", "what it is"), rows)


def quantizations() -> str:
    """Every way to quantise a model while it is loaded."""
    from probe.registries.quantizations import QUANTIZATIONS

    rows = [(f"`{one.name}`", one.what, f"`{one.method}`") for one in QUANTIZATIONS.values()]
    return table(("`--quantize`", "what becomes of the model", "library, and extra"), rows)


def importance_methods() -> str:
    """Every method of importance, and whether it draws continuations."""
    from probe.registries.importance_methods import METHODS

    rows = [(f"`{one.name}`", one.help, "yes" if one.sampled else "no") for one in METHODS.values()]
    return table(("method", "what is measured", "draws continuations"), rows)


def errors() -> str:
    """The kinds of stated failures."""
    import probe.errors as kinds

    found = [kind for kind in vars(kinds).values() if isinstance(kind, type) and issubclass(kind, kinds.ProbeError)]
    return table(("error", "when"), [(f"`{kind.__name__}`", " ".join((kind.__doc__ or "").split())) for kind in found])


def codes() -> str:
    """The exit codes."""
    return shell.CODES


def packages() -> str:
    """The packages of the library with the first paragraph of their docstrings."""
    import probe

    root = Path(probe.__file__).parent
    found = sorted(path for path in (*root.glob("*.py"), *root.glob("*/__init__.py")) if path.parent.name != "cli")
    rows = []
    for path in found:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if path.parent != root or not path.stem.startswith("__"):
            rows.append((f"`{name}`", " ".join(said.split("\n\n")[0].split())))
    return table(("package", "what it knows"), sorted(rows))


def public_names() -> str:
    """Every public name with the first sentence of its docstring."""
    import probe

    rows = []
    for name in probe.__all__:
        said = " ".join((inspect.getdoc(getattr(probe, name)) or "").split("\n\n")[0].split())
        rows.append((f"`probe.{name}`", re.split(r"(?<=[.:]) (?=[A-Z])", said)[0]))
    return table(("name", "what it is"), rows)


def index() -> str:
    """Every page: the commands in the order of `probe --help`, then the subjects."""
    titles = {name: text.split("\n", 1)[0].removeprefix("# ") for name, text in pages().items() if name != "README"}
    verbs = [name for group in shell.COMMANDS.values() for name, *_ in group]
    parts = []
    for heading, names in (("commands", verbs), ("subjects", sorted(set(titles) - set(verbs)))):
        rows = [(f"[{name}]({name}.md)", titles[name].partition(": ")[2]) for name in names if name in titles]
        parts.append(table((heading, ""), rows))
    return "\n\n".join(parts)


def skeleton(name: str) -> str:
    """A page for a command that has none yet."""
    from probe.tables import TABLES

    purpose, runs = next((text, one) for group in shell.COMMANDS.values() for word, one, text in group if word == name)
    sentence = (getattr(runs, "__doc__", "") or "").split(". ")[0]
    parts = [f"# {name}: {sentence[:1].lower()}{sentence[1:].strip('. ')}", f"```sh\n{purpose}\n```"]
    parts += ["## Options", f"<!-- generated: options {name} -->\n<!-- end -->"]
    if any(name in one.verbs for one in TABLES.values()):
        parts += ["## Tables", f"<!-- generated: tables-of {name} -->\n<!-- end -->"]
    return "\n\n".join(parts) + "\n"


PARTS: dict[str, Callable[..., str]] = {
    "options": options,
    "tables-of": tables_of,
    "all-tables": all_tables,
    "joined": joined,
    "sites": sites,
    "operations": operations,
    "step-edits": step_edits,
    "head-kinds": head_kinds,
    "quantizations": quantizations,
    "importance-methods": importance_methods,
    "errors": errors,
    "codes": codes,
    "packages": packages,
    "public-names": public_names,
    "index": index,
}
