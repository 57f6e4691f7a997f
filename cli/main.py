"""The `probe` command: one line a subcommand, and the one place where stated failures become words and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from typing import Any

import typer
from typer.core import TyperGroup

from probe.errors import BadOption, ProbeError

from . import (
    answers,
    attribute,
    compare,
    heads,
    help,
    importance,
    importing,
    lens,
    look,
    means,
    models,
    patch,
    printing,
    recipe,
    rewind,
    runs,
    sample,
    selftest,
    serve,
    shell,
    speculate,
    steer,
    steps,
    tables,
    top,
    trace,
    view,
    weights,
)
from .processes import first_alone, is_shared
from .progress import plain_warnings


class Group(TyperGroup):
    """Commands of one subject: its help shows them in whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            _write_commands(self, formatter, dict.fromkeys(self.commands, ""))


class Shell(TyperGroup):
    """Runs a subcommand; exit codes: 1 a stated failure or one that nobody foresaw, 2 wrong usage, 3 some rows failed, 4 and 5
    what was expected is not so, or not resolved, 130 interrupted. With --json an error is a document on standard output too."""

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        alone = first_alone() if is_shared(words) else contextlib.nullcontext()
        with alone, printing.guarded(), plain_warnings():
            as_json = "--json" in words[: words.index("--") if "--" in words else None]
            try:
                _check_words(words)
                return super().main(args, *rest, obj=as_json, **options)
            except ProbeError as error:
                _fail(error.message, error.hint, as_json=as_json)
            except Exception as error:
                _fail(*_unforeseen(error), as_json=as_json)
            sys.exit(1)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for purpose, commands in COMMANDS.items():
            with formatter.section(purpose):
                _write_commands(self, formatter, {name: example for name, _, example in commands})

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ProbeError as error:
            _fail(error.message, error.hint, as_json=bool(ctx.obj))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted: what was finished is kept", err=True)
            raise typer.Exit(130) from error
        except BrokenPipeError as error:
            printing.abandon(sys.stdout)  # the reader has gone: `probe … | head`
            raise typer.Exit(1) from error
        except Exception as error:
            _wrong_usage(error, as_json=bool(ctx.obj))
            raise

    def make_context(self, *args: Any, **options: Any) -> Any:
        try:
            return super().make_context(*args, **options)
        except Exception as error:
            _wrong_usage(error, as_json=bool(options.get("obj")))
            raise


DASH = "A text that begins with a dash goes after --, as in: probe trace -- '-5 + 3 ='"
CODES = (
    "Exit codes: 0 done, 1 nothing could be done, 2 wrong usage, 3 some rows failed and say why, 4 what was expected is not "
    "so, 5 it could not be resolved, 130 interrupted."
)


def _fail(message: str, hint: str, *, as_json: bool) -> None:
    """What went wrong: two lines on standard error and, where JSON was asked for, one document on standard output."""
    printing.complain(message, hint)
    if as_json:
        typer.echo(printing.as_json({"error": message, "hint": hint}))


def _wrong_usage(error: Exception, *, as_json: bool) -> None:
    """Words that the parser does not take: the same two lines, and its exit code. What is no such error is left alone."""
    usage: Any = error
    if not hasattr(error, "format_message") or "Usage: " in usage.format_message():  # that one shows the help
        return
    unknown = getattr(error, "option_name", None) and not getattr(error, "possibilities", True)
    hint = DASH if unknown else f"see {usage.ctx.command_path if usage.ctx else 'probe'} --help"
    _fail(usage.format_message(), hint, as_json=as_json)
    raise typer.Exit(usage.exit_code) from error


def _check_words(words: list[str]) -> None:
    """Raises `BadOption` for words that are no text: neither tokens nor a manifest could hold them."""
    for word in words:
        if not _is_text(word):
            raise BadOption(f"'{word}' is not UTF-8 text", hint="write it in UTF-8, or rename the file")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unforeseen(error: Exception) -> tuple[str, str]:
    """A line to show, and where the file is that holds the traceback; `PROBE_DEBUG=1` shows it."""
    import tempfile
    import traceback

    told = "".join(traceback.format_exception(error))
    if os.environ.get("PROBE_DEBUG", "0") not in ("", "0"):
        print(told, file=sys.stderr)
    first = (str(error).strip().splitlines() or [""])[0][:300]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="probe-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{sys.argv}\n{told}")
        where = f"the traceback is in {file.name}"
    except OSError:
        where = "no file could be written for the traceback"
    return f"unforeseen: {type(error).__name__}: {first}", f"{where}; PROBE_DEBUG=1 shows it"


def _write_commands(group: TyperGroup, formatter: Any, examples: dict[str, str]) -> None:
    """A line or two a command: what it does, in a whole sentence, and an example where there is one."""
    beside = max(map(len, group.commands)) + 4
    for name, example in examples.items():
        sentence = " ".join((group.commands[name].help or "").split("\n\n")[0].split())
        lines = textwrap.wrap(sentence, max(formatter.width - beside, 20), break_on_hyphens=False) + (
            [f"$ {example}"] if example else []
        )
        for i, line in enumerate(lines):
            formatter.write(f"  {'' if i else name:{beside - 2}}{line}\n")


# purpose -> (name, what runs or holds commands, an example)
COMMANDS: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "Record and look": (
        ("trace", trace.command, 'probe trace "The capital of France is" --generate 20 --out first'),
        ("look", look.command, 'probe look "The capital of France is"'),
        ("view", view.command, "probe view first --open"),
        ("steps", steps.command, "probe steps first"),
        ("lens", lens.command, 'probe lens "The capital of France is" --target " Paris"'),
        ("heads", heads.command, 'probe heads "The capital of France is" --kernel'),
        ("weights", weights.command, "probe weights smollm2 --what heads,composition"),
        ("attribute", attribute.command, 'probe attribute "The capital of France is" --answer " Paris"'),
        ("top", top.command, "probe top texts.txt --at mlp_post@5.n1234 --at z@5.3"),
        ("means", means.command, "probe means texts.txt --at z@all"),
        ("import", importing.command, "probe import hidden_states --layers 1,5,9 -m smollm2"),
    ),
    "Change and measure": (
        ("patch", patch.command, 'probe patch --clean "2 + 3 =" --corrupt "2 + 4 =" --answer " 5" --against " 6"'),
        ("steer", steer.command, "probe steer --make good.txt bad.txt --at resid_post@12 -o good.safetensors"),
    ),
    "Go back and continue": (
        ("rewind", rewind.command, "probe rewind first --to step1 --numbers --samples 32"),
        ("importance", importance.command, "probe importance first --method rescore,suppression"),
        ("sample", sample.command, "probe sample problems.jsonl -n 32 --keep-accuracy 25..75 --keep kept.jsonl"),
        ("answers", answers.command, "probe answers first --answer boxed"),
        ("speculate", speculate.command, 'probe speculate "1, 2, 3, 1, 2," --draft ngram --generate 24'),
    ),
    "Compare and check": (
        ("compare", compare.command, 'probe compare smollm2 smollm2 "Hello there" --dtype-b bfloat16'),
        ("selftest", selftest.command, "probe selftest tiny:llama tiny:gemma2"),
        ("recipe", recipe.app, "probe recipe run induction --quick"),
    ),
    "Runs, models and the manual": (
        ("runs", runs.app, "probe runs ls"),
        ("models", models.app, "probe models sites smollm2"),
        ("tables", tables.command, "probe tables tokens"),
        ("serve", serve.command, "probe serve --model smollm2 --idle 2h"),
        ("shell", shell.command, "probe shell --model smollm2"),
        ("help", help.command, "probe help rewind"),
    ),
}

app = typer.Typer(
    cls=Shell,
    name="probe",
    help="A microscope and a scalpel for open-weight language models.",
    epilog=CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _purpose, _commands in COMMANDS.items():
    for _name, _runs, _example in _commands:
        if isinstance(_runs, typer.Typer):
            app.add_typer(_runs, name=_name, cls=Group, epilog=f"\b\nExample: {_example}")
        else:
            app.command(_name, epilog=f"\b\nExample: {_example}\nMore: probe help {_name}")(_runs)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"probe {version('mechprobe')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    no_server: bool = typer.Option(
        False, "--no-server", help="Run without the server that is there (probe serve); also after a command."
    ),
) -> None:
    """A microscope and a scalpel for open-weight language models."""


def main() -> None:
    """Entry point of the `probe` script."""
    app()


if __name__ == "__main__":
    main()
