"""One run of every command, small: each is made when a test first asks for it, once for all workers of a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

import probe
from probe.store import Run, create, open_run
from probe.texts import token_columns

STORY = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
LONGER = "When Mary and John walked to the big store, Mary gave a drink to"
QUESTION = "Q: how many?\n"
SOLVED = "First we count the apples. There are 12 apples. Then we add 7 more. So there are 19 apples."
SCRIPT = "a </script><script>document.title='taken'</script> b"
# an accent of its own, two of them, a family in one glyph, right to left, an override, ANSI colour, NUL, space at the end
ODD = "e\u0301 e\u0301\u0301 \U0001f469\u200d\U0001f467 مرحبا \u202eabc\u202c \x1b[31mred \x00 tab\there\nnew  "
SPELLED = (SCRIPT, "a", "\u202eabc", "e\u0301", "\u0301", "مرحبا", "שלום", "\x1b[31m", "\x00", "\x7f", "\u2028", " ", "\t",
           "\n", "<0xC3>", "\ufffd", "می\u200cخواهم", "\U0001f469\u200d\U0001f467", "中", "", "b")  # fmt: skip
LONG = 5000  # characters, tokens of a model of bytes
PLUS, MINUS = ["I love it", "so good", "great"], ["I hate it", "so bad", "awful"]
FEW = {"samples": 4, "max_new": 8, "temperature": 1.0, "seed": 1}


class Maker:
    """Runs of one model, by name, in one folder."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder / model.replace(":", "-"), model
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def lm(self) -> probe.LanguageModel:
        return probe.load(self.model)

    def __getitem__(self, name: str) -> Run:
        """The run of that name, made if nobody has yet."""
        at = self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not (at / "manifest.json").is_file():
                RUNS[name](self, at)
        return open_run(at)

    def page(self, *names: str, **options: Any) -> Path:
        """The page of a run, or of two of them."""
        told = "-".join([*names, *(f"{key}={value}" for key, value in options.items())]).replace("/", "_")
        to = self.folder / f"{told}.html"
        runs = [self[name] for name in names]
        with FileLock(f"{to}.lock"):
            if not to.is_file():
                probe.view(*runs, out=to, **options)
        return to

    @property
    def few_layers(self) -> str:
        """Three of them, the first and the last among them, as options have them."""
        last = self.lm.anatomy.n_layers - 1
        return ",".join(map(str, sorted({0, last // 2, last})))

    @property
    def direction(self) -> Path:
        """A file with a direction of the model."""
        self["steer-made"]
        return self.folder / "direction.safetensors"


def _chain(maker: Maker, at: Path) -> None:
    """A trace whose completion is a chain of four steps, so that a random model has reasoned too."""
    lm = maker.lm
    ids = list(lm.encode(QUESTION).ids)
    start = len(ids)
    ids += lm.ids_of(SOLVED)
    arguments = {"generate": 24, "sampling": {"temperature": 1.0}}
    with create(at, command="trace", arguments=arguments) as writer:
        with writer.unit("all"):
            writer.write("prompts", {"prompt_id": [0], "text": [QUESTION], "n_tokens": [start], "error": [""]})
            writer.write("tokens", token_columns(0, ids, lm.pieces(ids), start))
        writer.finish(summary={}, model=lm.identity)


def _spelled(maker: Maker, at: Path) -> None:
    """A trace whose tokens are these texts, each whole, as no tokenizer at hand would have them."""
    lm = maker.lm
    ids = lm.ids_of("x" * len(SPELLED))
    columns = token_columns(0, ids, lm.pieces(ids), 1)
    with create(at, command="trace", arguments={}) as writer:
        with writer.unit("all"):
            writer.write("prompts", {"prompt_id": [0], "text": [SCRIPT], "n_tokens": [1], "error": [""]})
            writer.write("tokens", {**columns, "token": list(SPELLED)})
        writer.finish(summary={}, model=lm.identity)


def _long(maker: Maker, at: Path) -> None:
    """A text of thousands of tokens, more than the model itself could read."""
    ids = maker.lm.ids_of(("abcd efg. " * (LONG // 10 + 1))[:LONG])
    with create(at, command="trace", arguments={}) as writer:
        with writer.unit("all"):
            writer.write("prompts", {"prompt_id": [0], "text": ["abcd"], "n_tokens": [1], "error": [""]})
            writer.write("tokens", token_columns(0, ids, maker.lm.pieces(ids), 1))
        writer.finish(summary={}, model=maker.lm.identity)


def _patch(**options: object) -> Callable[[Maker, Path], object]:
    asked = {"clean": STORY, "corrupt": OTHER, "answer": "Mary", "against": "John", **options}

    def make(maker: Maker, at: Path) -> object:
        here = {"layers": maker.few_layers, **asked}
        return probe.patch(maker.lm, **{k: v for k, v in here.items() if v is not None}, out=at)

    return make


def _by_steps(maker: Maker, at: Path) -> None:
    """Both sides of a rewind, patched step by step."""
    swapped = probe.rewind(maker["chain"], to="step1", lm=maker.lm, numbers=True, **FEW)
    probe.patch(maker.lm, rewind=swapped, layers=maker.few_layers, against="2", by="step", out=at)


def _pairs(maker: Maker, at: Path) -> None:
    pair = {"clean": STORY, "corrupt": OTHER, "answer": "Mary", "against": "John"}
    other = {"clean": OTHER, "corrupt": STORY, "answer": "John", "against": "Mary"}
    probe.patch(maker.lm, pairs=[pair, other], layers=maker.few_layers, out=at)


def _direction(maker: Maker, at: Path) -> None:
    middle = maker.lm.anatomy.n_layers // 2
    to = maker.folder / "direction.safetensors"
    probe.make_direction(maker.lm, PLUS, MINUS, at=f"resid_post@{middle}", to=to, out=at)


RUNS: dict[str, Callable[[Maker, Path], object]] = {
    "trace": lambda m, at: probe.trace(m.lm, [STORY, "One. Two. Three."], generate=8, temperature=1.0, seed=3, out=at),
    "trace-full": lambda m, at: probe.trace(
        m.lm, [STORY, SCRIPT, ODD], generate=6, attention="full", lens=True, capture="resid_post@all", out=at
    ),
    "odd": lambda m, at: probe.trace(m.lm, ODD, attention="none", out=at),
    "spelled": _spelled,
    "long": _long,
    "trace-topk": lambda m, at: probe.trace(m.lm, STORY, attention="topk:4", out=at),
    "trace-summary": lambda m, at: probe.trace(m.lm, STORY, attention="summary", out=at),
    "trace-explain": lambda m, at: probe.trace(
        m.lm, STORY, generate=4, temperature=0.9, top_k=50, top_p=0.9, seed=1, explain="-1,-2", out=at
    ),
    "trace-answers": lambda m, at: probe.trace(m.lm, STORY, answers=["Mary", "John"], attention="none", out=at),
    "trace-bare": lambda m, at: probe.trace(m.lm, "Hi", attention="none", top=0, out=at),
    "chain": _chain,
    "rewind": lambda m, at: probe.rewind(m["chain"], to="step1", lm=m.lm, numbers=True, out=at, **FEW),
    "importance": lambda m, at: probe.importance(
        m["chain"], method="rescore,suppression,early-answer,resampling", lm=m.lm, out=at, **FEW
    ),
    "sample": lambda m, at: probe.sample(
        m.lm, [{"id": "a", "prompt": "3 + 4 =", "expect": 7}, {"id": "b", "prompt": "1 + 1 =", "expect": 2}], out=at, **FEW
    ),
    "patch": _patch(),
    "patch-heads": _patch(sites="z", positions="last"),
    "patch-path": _patch(path="z@0.0->q@1", layers=None),
    "patch-attribution": _patch(sites="attn_out,resid_pre", method="attribution", sample=0, layers=None),
    "patch-steps": _by_steps,
    "patch-pairs": _pairs,
    "lens": lambda m, at: probe.lens(m.lm, STORY, target="Mary", out=at),
    "attribute": lambda m, at: probe.attribute(m.lm, STORY, answer="Mary", against="John", by_source=True, out=at),
    "speculate": lambda m, at: probe.speculate(m.lm, "1, 2, 3, 1, 2, 3, 1, 2,", draft="ngram", generate=16, out=at),
    "compare": lambda m, at: probe.compare(m.lm, m.lm, STORY, edit="mlp_out@1=zero", out=at),
    "steer-made": _direction,
    "steer": lambda m, at: probe.steer(
        m.lm, m.direction, [STORY, "It was"], answer="Mary", against="John", strengths="-2,2", controls=4, out=at
    ),
}
