"""One file that runs nothing but its own script, and what is on it: all of a run, or what fits, and what does not is said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

import probe
from probe.reporting.page import Page, PageRun, page_html
from probe.reporting.panels import sequence_views
from probe.reporting.views import Axis, Grid, Measure, Panel, Patterns, SequenceView, TokenStrip
from probe.store import Run

RUDE = "</script><script>alert(1)</script><!--\x1b[31m\u202eא\ud83d"


class Elements(HTMLParser):
    """The scripts and styles of a page as an HTML parser finds them, and the attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = True
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data


class Held:
    """What a page holds."""

    def __init__(self, page: Page) -> None:
        self.elements = Elements(page.html).found
        by_id = {attributes["id"]: text for _, attributes, text in self.elements if "id" in attributes}
        self.about = json.loads(by_id["page"])
        self.streams = [zlib.decompress(base64.b64decode(by_id[f"frame-{i}"])) for i in range(len(self.about["frames"]))]

    def panels(self, sequence: int) -> list[dict[str, Any]]:
        return list(self.about["sequences"][sequence]["panels"])

    def names(self, sequence: int) -> list[str]:
        return [panel["name"] for panel in self.panels(sequence)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two prompts, one of them rude, with attention and lens."""
    lm = probe.load("tiny:llama")
    texts = ["The cat </script> sat", "One two three"]
    return probe.trace(lm, texts, generate=4, attention="full", lens=True, out=tmp_path_factory.mktemp("runs") / "it's")


def strip(n: int = 50, seed: int = 0) -> TokenStrip:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"pos": np.arange(n), "token": [f" t{i}" for i in range(n)], "logprob": -rng.exponential(size=n)})
    return TokenStrip("tokens", "Text", "tokens", frame, measures=(Measure("logprob", "log-prob", "nats"),))


def grid(name: str, layers: int, n: int, seed: int = 0) -> Grid:
    rng = np.random.default_rng(seed)
    layer, pos = (part.ravel() for part in np.meshgrid(np.arange(layers), np.arange(n), indexing="ij"))
    frame = pd.DataFrame({"layer": layer, "pos": pos, "kl": rng.exponential(size=layers * n).astype(np.float32)})
    return Grid(
        name, f"Grid {name}", "lens", frame,
        rows=Axis("layer", "layer", "layer"), columns=Axis("pos", "position", "token"), measures=(Measure("kl", "KL", "nats"),),
    )  # fmt: skip


def patterns(layers: int, heads: int, n: int, seed: int = 0) -> Patterns:
    """Head h of a layer puts h / heads on position 0, in all rows but the first, and the rest where it falls."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(layers):
        for head in range(heads):
            for query in range(n):
                weights = rng.dirichlet(np.full(query + 1, 0.3))
                weights[1:] *= (1 - head / heads) / max(weights[1:].sum(), 1e-9)
                weights[0] = head / heads if query else 1.0
                rows.append((layer, head, query, None, weights.astype(np.float32)))
    frame = pd.DataFrame(rows, columns=["layer", "head", "query", "keys", "weights"])
    follows = {"layer": "layer", "head": "head"}
    return Patterns("attention", "Attention", "attention", frame, follows=follows, note="Weights of the softmax.")


def room(run: Run, size: int) -> float:
    """Megabytes of a page that has `size` bytes for its panels."""
    return (len(made(run)[0].html) + size) / 1e6


def made(run: Run, *panels: tuple[Panel, ...], max_mb: float = 20.0, **more: Any) -> tuple[Page, Held]:
    views = [SequenceView(i, f"prompt {i}", own) for i, own in enumerate(panels)]
    page = page_html([PageRun(run, views)], max_mb=max_mb, **more)
    return page, Held(page)


def test_only_its_own_script_may_run(run: Run) -> None:
    view = SequenceView(0, RUDE, (strip(),))
    page = page_html([PageRun(run, [view])], watching=True, refresh=3)
    held = Held(page)
    (policy,) = [a["content"] for tag, a, _ in held.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    scripts = [text for tag, a, text in held.elements if tag == "script" and "type" not in a]
    styles = [text for tag, _, text in held.elements if tag == "style"]
    assert len(scripts) == len(styles) == 1
    hashed = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (scripts[0], styles[0])]
    assert rules == {
        "default-src": "'none'", "script-src": hashed[0], "style-src": hashed[1], "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    before = [tag for tag, a, _ in held.elements].index("meta")  # nothing that loads or runs stands before the policy
    assert {tag for tag, _, _ in held.elements[:before]} <= {"html", "head"}
    asked = [a for _, a, _ in held.elements if {"src", "href", "srcset", "style", "onload", "onerror"} & set(a)]
    assert asked == [] and "<!--" not in scripts[0]  # a comment would make an HTML parser read on behind the script's end
    assert page.html.replace(scripts[0], "").replace(styles[0], "").isascii()
    assert held.about["watching"] is True and held.about["refresh"] == 3


def test_rude_texts_are_data(run: Run) -> None:
    rude = pd.DataFrame({"pos": [0], "token": pd.Series([RUDE], dtype="object"), "logprob": [np.nan]})
    panel = TokenStrip("tokens", RUDE, "tokens", rude, where={"prompt_id": 0}, note=RUDE, measures=(Measure("logprob", RUDE),))
    run = Run(run._source, {**run.manifest, "typed": RUDE, "run_id": RUDE, "warnings": [RUDE], "seed": 2**63 - 1})
    page = page_html([PageRun(run, [SequenceView(0, RUDE, (panel,))])])
    held = Held(page)
    assert sum(tag == "script" for tag, _, _ in held.elements) == 3  # the page, a frame, the script
    (one,) = held.panels(0)
    assert one["title"] == one["note"] == one["measures"][0]["title"] == held.about["sequences"][0]["title"] == RUDE
    (about,) = held.about["runs"]
    assert about["typed"] == RUDE and about["warnings"] == [RUDE] and about["manifest"]["seed"] == str(2**63 - 1)
    words = held.about["frames"][0]["columns"][1]["words"]
    assert json.loads(held.streams[0][2 : 2 + words]) == [RUDE]  # behind a byte of `pos` and one of the code


def test_fields_of_panels_by_their_names(run: Run) -> None:
    axis = Axis("layer", "layer", "layer", labels={np.int64(0): "first", -1: "none"})
    measure = Measure("kl", "KL", "nats", "log", low=float("nan"), high=np.float32(2.5), band=("a", "b"))
    base = grid("g", 1, 2)
    panel = Grid(
        "g", "G", "lens", base.frame, rows=axis, columns=base.columns, measures=(measure,), where={"branch": np.int32(0)}
    )
    _, held = made(run, (strip(), panel))
    one = held.panels(0)[1]
    assert one["rows"] == {"column": "layer", "title": "layer", "cursor": "layer", "labels": [[0, "first"], [-1, "none"]]}
    assert one["columns"]["labels"] is None and one["where"] == {"branch": 0} and one["upwards"] is False
    assert one["measures"] == [
        {"column": "kl", "title": "KL", "unit": "nats", "scaling": "log", "low": None, "high": 2.5, "band": ["a", "b"]}
    ]
    assert (one["kind"], one["frame"], held.panels(0)[0]["kind"]) == ("grid", 1, "tokens")


def test_a_frame_is_there_once(run: Run) -> None:
    one, shared = grid("one", 2, 3), grid("two", 2, 3)
    again = Grid("again", "A", "lens", one.frame, rows=one.rows, columns=one.columns, measures=one.measures)
    _, held = made(run, (strip(), one, again), (strip(), shared), (strip(), shared))
    assert [panel["frame"] for panel in held.panels(0)] == [0, 1, 1]
    assert held.panels(1)[1]["frame"] == held.panels(2)[1]["frame"] == 3 and len(held.streams) == 5


def test_snippets_give_the_rows_of_a_panel(run: Run) -> None:
    seen = set()
    for view in sequence_views(run):
        page = page_html([PageRun(run, [view])])
        for panel, said in zip(view.panels, Held(page).panels(0), strict=True):
            if not (snippet := said["snippet"])["pandas"]:
                continue
            own = [c for c in panel.frame.columns if c in run.schema(panel.table).names and c not in panel.derived]
            names: dict[str, Any] = {}
            exec(snippet["pandas"], names)
            asked = duckdb.sql(snippet["duckdb"]).to_df()
            for found in (names["rows"], asked):
                assert len(found) == len(panel.frame), panel.name
                keys = [c for c in own if c in probe.tables.TABLES[panel.table].keys]
                expected = panel.frame[keys].astype(str).sort_values(keys).values.tolist()
                assert found[keys].astype(str).sort_values(keys).values.tolist() == expected
            seen.add(panel.table)
    assert "tokens" in seen


@pytest.mark.parametrize("size", [4_000_000, 100_000, 40_000])
def test_heads_that_do_not_fit_are_left_out_and_said(run: Run, size: int) -> None:
    panel = patterns(3, 4, 250)
    max_mb = room(run, size)
    page, held = made(run, (strip(), panel), max_mb=max_mb)
    assert len(page.html) <= max_mb * 1e6
    one = held.panels(0)[1]
    rows = held.about["frames"][one["frame"]]["rows"]
    kept = rows // 250
    if size == 4_000_000:
        assert kept == 12 and not page.left_out and "heads" not in one["note"]
    else:
        assert 0 < kept < 12 and len(page.html) > max_mb * 1e6 - size / 2
        assert one["note"].startswith(f"Weights of the softmax. Shown are {kept} of 12 heads")
        (said,) = page.left_out
        assert said.startswith(f"patterns of {12 - kept} of 12 heads (about ") and "--heads 5.3,7.all" in said
    assert list(page.left_out) == held.about["left_out"]
    assert "Rounded: weights to steps of 0.0039; the table has them exactly." in one["note"]


def test_heads_that_look_least_at_the_first_token_stay(run: Run) -> None:
    panel = patterns(2, 8, 200)
    _, held = made(run, (strip(), panel), max_mb=room(run, 50_000))
    frame = held.about["frames"][held.panels(0)[1]["frame"]]
    n = frame["rows"]
    heads = np.frombuffer(held.streams[1][n : 2 * n], np.uint8)  # layer, head, …: a byte each
    assert frame["columns"][1] == {"name": "head", "type": "number", "integer": True, "of": "u1"}
    kept = sorted(set(heads.tolist()))
    assert 0 < len(kept) < 8 and kept == list(range(len(kept)))


@pytest.mark.parametrize("size", [400_000, 200_000, 50_000])
def test_what_is_left_out_comes_with_the_size_that_is_named(run: Run, size: int) -> None:
    max_mb = room(run, size)
    prompts = [
        (strip(seed=i), grid("small", 3, 20, seed=i), grid("large", 20, 400, seed=i), patterns(1, 2, 60)) for i in range(12)
    ]
    page, held = made(run, *prompts, max_mb=max_mb)
    assert len(page.html) <= max_mb * 1e6 and page.left_out
    sizes = {int(found) for said in page.left_out for found in re.findall(r"--max-mb (\d+)", said)}
    assert len(sizes) == 1
    whole, _ = made(run, *prompts, max_mb=sizes.pop())
    assert whole.left_out == ()
    assert "tokens" in held.names(0)  # the text of the first is there in any case
    first, last = held.names(0), held.names(-1)
    assert set(last) <= set(first)


def test_what_goes_first(run: Run) -> None:
    prompts = [(strip(seed=i), grid("small", 3, 20, seed=i), grid("large", 20, 400, seed=i)) for i in range(6)]
    page, held = made(run, *prompts, max_mb=room(run, 50_000))
    assert all("small" in held.names(i) for i in range(6))
    assert (
        [i for i in range(6) if "large" in held.names(i)] == list(range(sum("large" in held.names(i) for i in range(6)))) != []
    )
    (said,) = page.left_out
    assert re.match(
        r"Grid large of prompts? \d(\.\.5)? \(about \d+ kB|0\.\d MB\): --max-mb 1, or --prompt K for one prompt$", said
    )
    page, held = made(run, *prompts, max_mb=room(run, 6_000))
    assert [one["prompt"] for one in held.about["sequences"]] == list(range(len(held.about["sequences"])))
    assert 1 <= len(held.about["sequences"]) < 6 and page.left_out[-1].startswith("prompts ")
    page, held = made(run, *prompts, max_mb=0.001)
    assert [one["prompt"] for one in held.about["sequences"]] == [0] and held.names(0) == ["tokens"]


def test_numbers_of_large_grids_are_rounded_and_said(run: Run) -> None:
    panel = grid("lens", 30, 4_000)
    page, held = made(run, (strip(), panel, grid("small", 2, 30)))
    one, small = held.panels(0)[1:]
    columns = {column["name"]: column for column in held.about["frames"][one["frame"]]["columns"]}
    assert columns["layer"]["of"] == "u1" and columns["pos"]["of"] == "u2" and columns["kl"]["of"] == "u2"
    step = float(panel.frame["kl"].max() - panel.frame["kl"].min()) / 4095
    assert columns["kl"]["step"] == pytest.approx(step)
    assert one["note"] == f"Rounded: kl to steps of {step:.2g}; the table has them exactly." and small["note"] == ""
    assert not page.left_out


def test_a_page_of_a_run_is_small(smollm2: probe.LanguageModel) -> None:
    """1,000 tokens of SmolLM2 without attention rows: under 1 MB, its script with it."""
    text = (Path(__file__).parents[1] / "README.md").read_text() * 2
    ids = smollm2.encode(text).ids[:1000]
    run = probe.trace(smollm2, smollm2.pieces(ids).text)
    page = page_html([PageRun(run, sequence_views(run))])
    assert len(page.html) < 1e6 and not page.left_out
