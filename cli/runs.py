"""`probe runs`: the runs in a folder — list, show, check, export, remove."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.requests import Option

from .command import with_options
from .completing import completed
from .groups import Output
from .terminal import show_document

if TYPE_CHECKING:
    from probe.store import Listed, Run

app = typer.Typer(help="List, show, draw, check, export and remove runs.", no_args_is_help=True, rich_markup_mode=None)

RUNS = "runs"
Root = Annotated[str, typer.Argument(help="Folder that holds runs, or its URL.")]
RunPath = Annotated[str, typer.Argument(help="A run directory, or its URL.", autocompletion=completed("runs"))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="csv, jsonl, parquet, safetensors [default: by suffix, or csv].", autocompletion=completed("formats")
    ),
]


@dataclass(frozen=True)
class Wanted:
    """Which runs are listed, and in which order."""

    model: Annotated[
        str | None, Option("Those whose model's name or source has this in it.", ("--model", "-m"), complete="models")
    ] = None
    command: Annotated[str | None, Option("Those that this command made.", complete="commands")] = None
    grep: Annotated[str | None, Option("Those with this regular expression in their name or a prompt.")] = None
    since: Annotated[str | None, Option("Those begun since: 2026-11-28, 2026-11-28T14:30, or 2d, 3h, 45m ago.")] = None
    sort: Annotated[
        str,
        Option(
            "By started, name, command, model, prompt, status, rows or size; -size has the largest first.", complete="sorts"
        ),
    ] = "started"  # fmt: skip


@dataclass(frozen=True)
class Pictured:
    """What is drawn of a run."""

    prompt: Annotated[int | None, Option("The prompt that is drawn.", default="the first", minimum=0)] = None
    heads: Annotated[str | None, Option("Attention patterns of these heads: 5.3,7.all (layer.head).", default="one head")] = (
        None
    )
    measure: Annotated[
        str | None, Option("The column that is drawn wherever a picture has it.", default="the first of each picture")
    ] = None
    no_pictures: Annotated[bool, Option("Only what the run holds and how it was made.", ("--no-pictures",))] = False

    def show(self, run: Run) -> None:
        """Print the pictures."""
        from probe.requests.view import parse_heads

        from .pictures import show_pictures

        show_pictures(run, prompt=self.prompt, heads=parse_heads(self.heads), measure=self.measure)


@app.command("ls")
@with_options
def ls(output: Output, wanted: Wanted, root: Root = RUNS) -> None:
    """List the runs in a folder with their models and prompts, oldest first, unfinished and damaged ones too."""
    from probe import store
    from probe.addresses import is_url
    from probe.errors import RunError
    from probe.store import layout

    from .terminal import show_table, size

    with layout.readable(Path(root)):
        there = is_url(root) or Path(root).is_dir()
    if Path(root) != Path(RUNS) and not there:
        raise RunError(f"there is no folder '{root}'", hint=f"without one, the runs in '{RUNS}' are listed")
    runs = store.list_runs(root, **vars(wanted))
    if output.as_json:
        summary = {"runs": [_plain(run) for run in runs]}
        show_document({"root": str(root), "command": "runs ls", "summary": summary})
        return
    if not runs:
        asked = any((wanted.model, wanted.command, wanted.grep, wanted.since))
        typer.echo(f"no runs in '{root}'" + " are as asked for" * asked, err=True)
        return
    rows = [(str(r.path), r.command, r.model, r.started, _status(r), f"{r.rows:,}", size(r.bytes), _prompt(r)) for r in runs]
    show_table(("run", "command", "model", "started", "status", "rows", "size", "prompt"), rows)


@app.command("show")
@with_options
def show(run: RunPath, output: Output, pictured: Pictured) -> None:
    """Show what a run holds and how it was made, and the pictures of one of its prompts."""
    from probe import store

    from .printing import printable
    from .terminal import expected_in_words, show_table, size

    opened = store.open_run(run)
    manifest = opened.manifest
    if output.as_json:
        show_document({"run": str(run), "command": opened.command, "summary": opened.summary, "manifest": manifest})
        return
    facts: list[tuple[str, str]] = [("run", opened.run_id), ("made by", manifest["typed"])]
    for key in ("started", "ended", "wall_seconds", "seed", "parent"):
        if manifest.get(key) is not None:
            facts.append((key.replace("_", " "), str(manifest[key])))
    facts.append(("peak memory", size(manifest["peak_memory_bytes"])))
    facts += [(f"model {key}", _line(value)) for key, value in (manifest.get("model") or {}).items()]
    facts += [(key, _line(value)) for key, value in opened.summary.items() if not isinstance(value, list)]
    facts += [("expected", expected_in_words(one)) for one in manifest.get("expectations", ())]
    facts += [("warning", text) for text in manifest["warnings"]]
    show_table(("about", "value"), [(key, printable(text)) for key, text in facts])
    typer.echo("")
    tables = manifest["tables"].items()
    show_table(("table", "rows", "size"), [(name, f"{t['rows']:,}", size(t["bytes"])) for name, t in tables])
    if not pictured.no_pictures:
        pictured.show(opened)
    if "branches" in opened.tables:
        from probe.trees import drawn, tree

        typer.echo("\n" + printable("\n".join(drawn(tree(opened)))))


@app.command("tree")
@with_options
def tree(
    run: RunPath,
    output: Output,
    newick: Annotated[bool, typer.Option("--newick", help="In Newick's notation; lengths are tokens.")] = False,
    prompt: Annotated[int | None, typer.Option("--prompt", min=0, help="Only this prompt's; else all, a node each.")] = None,
) -> None:
    """Draw the branches of a run, and of the runs in its folder that were made from it, with outcome counts."""
    _show_tree(run, output, newick=newick, prompt=prompt)


def _show_tree(run: str, output: Output, *, newick: bool, prompt: int | None = None) -> None:
    from probe import trees
    from probe.store import open_run

    found = trees.tree(open_run(run), prompt_id=prompt)
    if output.as_json:
        show_document({"run": str(run), "command": "runs tree", "summary": found})
    else:
        typer.echo(trees.newick(found) if newick else "\n".join(trees.drawn(found)))


@app.command("check")
@with_options
def check(run: RunPath, output: Output) -> None:
    """Compare every file of a run with its hash; exit code 1 if anything is missing, torn, altered or extra."""
    from probe import store

    problems = store.check(run)
    if output.as_json:
        summary = {"whole": not problems, "problems": problems}
        show_document({"run": str(run), "command": "runs check", "summary": summary})
    else:
        for problem in problems:
            typer.echo(problem)
        if not problems:
            typer.echo(f"{run}: whole")
    if problems:
        raise typer.Exit(1)


@app.command("export")
@with_options
def export(
    run: RunPath,
    output: Output,
    table: Annotated[str | None, typer.Argument(help="A table of the run.", autocompletion=completed("tables"))] = None,
    to: Annotated[Path | None, typer.Argument(help="File to write; must not exist. - or none: standard output.")] = None,
    format: Format = None,
    flat: Annotated[bool, typer.Option("--flat", help="Of attention and scores: one row a (query, key), no lists.")] = False,
    newick: Annotated[bool, typer.Option("--newick", help="The tree of branches, in place of a table.")] = False,
) -> None:
    """Write one table of a run as csv, jsonl, parquet, or (activations) safetensors; or its tree, --newick or --json."""
    if table is None and (newick or output.as_json):
        _show_tree(run, output, newick=newick)
        return
    if table is None or newick:
        raise typer.BadParameter("give a table, or for the tree of branches only --newick or --json")
    from probe import store

    if to is None or str(to) == "-":
        _to_stdout(store.open_run(run), table, output, format=format, flat=flat)
        return
    rows = store.export(store.open_run(run), table, to, format=format, flat=flat)
    if output.as_json:
        summary = {"table": table, "rows": rows, "file": str(to)}
        show_document({"run": str(run), "command": "runs export", "summary": summary})
    else:
        typer.echo(f"{to}: {rows:,} rows")


def _to_stdout(run: Run, table: str, output: Output, *, format: str | None, flat: bool) -> None:
    """A table's bytes, and nothing else, on standard output."""
    from probe import store

    if output.as_json:
        raise typer.BadParameter("standard output holds the table: leave out --json, or name a file")
    if format == "parquet" and sys.stdout.isatty():
        raise typer.BadParameter("parquet is no text for a terminal: name a file, or send it through a pipe")
    store.export(run, table, sys.stdout.buffer, format=format, flat=flat)


@app.command("rm")
def rm(
    runs: Annotated[list[str], typer.Argument(help="Run directories, or their URLs.", autocompletion=completed("runs"))],
    yes: Yes = False,
) -> None:
    """Delete runs, whole or unfinished; files in them that are not theirs stay. Anything that is not a run is refused."""
    from probe import store
    from probe.errors import BadOption, RunError

    from .terminal import size

    runs = list(dict.fromkeys(runs))
    for run in runs:
        if not store.is_run(run):
            hint = "nothing was removed; probe runs ls shows those there are"
            raise RunError(f"'{run}' is not a run", hint=hint)
    if not yes:
        if not sys.stdin.isatty():
            raise BadOption("nothing was removed: there is no terminal to ask on", hint="add --yes")
        described = [store.describe(run) for run in runs]
        total = size(sum(d.bytes for d in described))
        typer.confirm(f"remove {', '.join(str(run) for run in runs)} ({total})?", abort=True)
    for run in runs:
        left = store.remove(run)
        typer.echo(f"removed {run}")
        if left:
            typer.echo(f"kept in it, not of the run: {', '.join(left)}", err=True)


def _plain(run: Listed) -> dict[str, Any]:
    return {**run._asdict(), "path": str(run.path)}


def _status(run: Listed) -> str:
    return run.status if run.units is None else f"{run.status}, {run.units} units"


def _prompt(run: Listed) -> str:
    """Its first prompt's first words, or what is wrong with it."""
    more = f" (and {run.prompts - 1:,} more)" if run.prompts > 1 else ""
    return run.reason or run.prompt + more


def _line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
