"""The manual says what is so: generated parts are those of today's declarations, links lead somewhere, nothing is left out."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from probe.cli import help as helps
from probe.cli import main as program
from probe.recipes.manual.__main__ import regenerated
from probe.recipes.manual.generated import commands, pages, skeleton

from probe.tables import SCHEMA_VERSION, TABLES, schema
from tests.test_readme import examples

ROOT = Path(__file__).parents[1]
TEXTS = {"../../README": (ROOT / "README.md").read_text(encoding="utf-8"), **pages()}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", pages())
def test_generated_parts_are_as_the_declarations_are(name: str) -> None:
    """A page that fails here is written anew by `python -m recipes.manual`."""
    assert regenerated(pages()[name]) == pages()[name]
    assert pages()[name].count("<!-- generated:") == pages()[name].count("<!-- end -->")


def test_a_page_that_has_drifted_is_seen() -> None:
    text = pages()["help"]
    assert regenerated(text.replace("`--json`", "`--yaml`")) == text


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in LINK.findall(without_code(TEXTS[name])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / "recipes" / "manual" / f"{name}.md").parent / file if name[0] != "." else ROOT / file
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" and path.is_file() else TEXTS[name]
        assert not file or path.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(text), f"{name}: {target}"


def test_every_command_has_a_page_and_every_option_is_on_it() -> None:
    for words, command in commands().items():
        page = pages()[words.split()[0]]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                argument = (parameter.metavar or option.upper()).replace("|", "\\|")
                shown = f"`{option}" if option.startswith("-") else f"| {argument} |"
                assert shown in page, f"{words} {option}"


def test_every_table_and_column_is_on_the_page_of_tables() -> None:
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages()["tables"], flags=re.MULTILINE | re.DOTALL))
    for name in TABLES:
        for column in schema(name).names:
            assert f"| {column} |" in parts[name], f"{name}.{column}"


def test_the_history_has_every_version_of_the_schema() -> None:
    for version in range(1, SCHEMA_VERSION + 1):
        assert f"## Version {version}\n" in pages()["schema"]
        assert version == 1 or f"<!-- generated: joined {version} -->" in pages()["schema"]


@pytest.mark.parametrize("name", TABLES)
def test_the_example_of_a_table_can_be_asked(name: str, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    table = TABLES[name]
    assert table.verbs and name in table.example
    file = tmp_path / name / "part.parquet" if table.large else tmp_path / f"{name}.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([], schema=schema(name)), file)
    assert duckdb.sql(table.example.replace("RUN", str(tmp_path))).fetchall() is not None


def test_every_name_that_can_be_chosen_is_explained() -> None:
    """Importance methods, edits of a step, operations, sites, laws, exit codes, errors: each stands on its page."""
    from probe import errors
    from probe.registries.edit_operations import OPERATIONS
    from probe.registries.importance_methods import METHODS
    from probe.registries.step_edits import STEP_EDITS
    from probe.sites import SITES

    wanted = {
        "importance": METHODS, "rewind": [one.option for one in STEP_EDITS.values()], "edits": OPERATIONS, "sites": SITES,
        "errors": [*("0", "1", "2", "3", "130"), *(name for name, kind in vars(errors).items() if isinstance(kind, type))],
    }  # fmt: skip
    for page, names in wanted.items():
        for name in names:
            assert re.search(rf"^\| `?{re.escape(name)}\b", pages()[page], flags=re.MULTILINE), f"{page}: {name}"


def test_terms_of_our_own_stand_in_the_glossary() -> None:
    for term in ("fork", "stem", "arm", "headroom", "kept mass", "floor", "resolved", "head summary", "partial forward"):
        assert re.search(rf"^\| {term} \|.*\| ours\b", pages()["glossary"], flags=re.MULTILINE), term
    rows = re.findall(r"^\| ([^|]*) \| (.*) \| ([^|]*) \|$", pages()["glossary"], flags=re.MULTILINE)
    assert all(meaning and source for _, meaning, source in rows)


def test_methods_that_docstrings_name_are_explained() -> None:
    for path in (ROOT / "probe").rglob("*.py"):
        for mark in re.findall(r"METHODS ([A-Z]\d+)", path.read_text(encoding="utf-8")):
            assert re.search(rf"\b{mark}\b", pages()["methods"]), f"{path}: {mark}"


def test_help_and_tables_show_the_same_from_the_package(shell) -> None:
    listed = shell("help").stdout
    for topic in helps.topics():
        assert re.search(rf"^{topic} ", listed, flags=re.MULTILINE), topic
    shown = shell("help", "tables").stdout
    assert "<!--" not in shown and "| ---" not in shown and "](" not in shown
    assert set(shown.split()) >= {column for table in TABLES for column in schema(table).names}
    assert json.loads(shell("help", "tables", "--json").stdout)["summary"]["markdown"].startswith("# tables")
    wrong = shell("help", "tabels")
    assert wrong.returncode == 1 and "did you mean 'tables'" in wrong.stderr


@pytest.mark.parametrize(("words", "heavy"), [("help trace", "torch numpy pandas pyarrow"), ("tables tokens", "torch pandas")])
def test_the_manual_is_shown_without_what_it_is_about(words: str, heavy: str) -> None:
    code = (
        "import sys\nfrom probe.cli.main import app\n"
        f"try:\n    app({words.split()!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"assert not {set(heavy.split())!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_table_is_shown_with_its_columns(shell) -> None:
    for name in ("tokens", "activations"):
        shown = shell("tables", name).stdout
        assert set(shown.split()) >= set(schema(name).names) and TABLES[name].example in shown
        table = json.loads(shell("tables", name, "--json").stdout)["summary"]["tables"][0]
        assert [c["column"] for c in table["columns"]] == schema(name).names
    assert all(re.search(rf"^{name} ", shell("tables").stdout, flags=re.MULTILINE) for name in TABLES)
    wrong = shell("tables", "tokns")
    assert wrong.returncode == 1 and "did you mean 'tokens'" in wrong.stderr


def test_a_command_without_a_page_gets_one() -> None:
    page = regenerated(skeleton("trace"))
    assert page.startswith("# trace: record") and "| `--capture`" in page and "[tokens](tables.md#tokens)" in page


def test_plain_text_has_no_marks() -> None:
    text = "# A `b`\n\nsee [the page](x.md), [a paper](https://e.org) **now**\n\n| a | b\\|c |\n| --- | --- |\n| `long` | d |\n"
    assert helps.plain(text + "```sh\n| x `y` |\n```") == (
        "A b\n===\n\nsee the page, a paper (https://e.org) now\n\na     b|c\nlong  d\n    | x `y` |"
    )


def test_help_of_the_shell_is_whole_sentences_with_examples(shell) -> None:
    shown = shell("--help").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    flat = " ".join(shown.split())
    for group in program.COMMANDS.values():
        for _, command, example in group:
            assert " ".join(example.split()) in flat
            said = command.info.help if isinstance(command, typer.Typer) else command.__doc__
            assert " ".join(said.split("\n\n")[0].split()) in flat


@pytest.mark.parametrize("example", [example for group in program.COMMANDS.values() for _, _, example in group])
def test_examples_are_commands(example: str) -> None:
    parses(example)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_in_the_text_are_commands(name: str) -> None:
    """Those of console blocks and those in a line, where they have arguments; words in capitals stand for the reader's own."""
    inline = re.findall(r"`(probe [a-z][^`]*)`", re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL))
    for command in [*inline, *(command for command, _ in examples(TEXTS[name]) if command.startswith("probe "))]:
        words = command.split()
        assert {words[1], " ".join(words[1:3])} & {*commands(), *(one.split()[0] for one in commands())}, command
        if len(words) > 2 and command.removeprefix("probe ") not in commands():
            parses(command)


def test_a_wrong_example_is_seen() -> None:
    for wrong in ("probe trace a --capturing z@5", "probe glance a", "probe rewind a"):
        with pytest.raises((Exception, SystemExit)):
            parses(wrong)


def parses(example: str) -> None:
    """Fails where the words are no command, or its options are not its own."""
    words = shlex.split(example)
    assert words.pop(0) == "probe"
    name = " ".join(words[:2]) if " ".join(words[:2]) in commands() else words[0]
    commands()[name].make_context(name, words[len(name.split()) :])
