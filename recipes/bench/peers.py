"""The same work by this program and by others, in one process and in turn: captures, a sweep, a lens, a continuation.

The others are installed into an environment of their own, `bench-peers` in the cache folder, and this bench runs again in
it: this checkout, with the same torch and transformers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

import probe
from probe.language_model.home import home

from ..environments import Unavailable, make_environment
from .measure import Case, compare, once, show
from .peer_tools import Interpkit, NNsight, Notebook, Ours, Tool, TransformerLens
from .trace import text_of

PEERS = ("transformer-lens", "nnsight", "interpkit")
SOURCE = Path(__file__).parents[2]


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print the time of each as a ratio to plain transformers, and how far its numbers are from those."""
    if any(util.find_spec(name.replace("-", "_")) is None for name in PEERS):
        sys.exit(_again())
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}; {', '.join(f'{one} {metadata.version(one)}' for one in PEERS)}")
    long, short, pair, new = (32, 16, 3, 8) if quick else (512, 128, 6, 64)
    long_ids, short_ids = (torch.tensor([lm.encode(text_of(lm, n)).ids]) for n in (long, short))
    works: dict[str, tuple[str, Callable[[Tool], Any]]] = {
        "capture": (f"the stream after each block, {long} tokens", lambda tool: tool.residuals(long_ids)),
        "sweep": (f"the stream patched, all layers, a text of about {pair} tokens", swept(lm, pair)),
        "lens": (f"what each layer says, {short} tokens", lambda tool: tool.lens(short_ids)),
        "generation": (f"{new} tokens after {short}", lambda tool: tool.generate(short_ids, new)),
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tools = tools_of(lm, Path(folder))
        for name, (title, work) in works.items():
            if only in (None, name):
                time_all(lm, title, tools, work, repeat=1 if name == "sweep" else repeat)


def tools_of(lm: probe.LanguageModel, folder: Path) -> list[Tool]:
    """All of them, each with a copy of the model; plain transformers first."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm.tokenizer.save_pretrained(folder)
    lm.model.save_pretrained(folder)

    def copy(attention: str = "sdpa") -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype, attn_implementation=attention).eval()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        Notebook(copy()), Ours(lm), TransformerLens(copy("eager"), tokenizer, folder), NNsight(folder, copy()),
        Interpkit(copy(), tokenizer),
    ]  # fmt: skip


def swept(lm: probe.LanguageModel, n: int) -> Callable[[Tool], Any]:
    """Two texts that differ in their first word, and the ends of two words to answer with."""
    clean, corrupt = (torch.tensor([lm.encode(f" {name}, {text_of(lm, n)}").ids]) for name in ("Mary", "John"))
    answer, against = (lm.ids_of(word)[-1] for word in (" a", " the"))
    return lambda tool: tool.sweep(clean, corrupt, answer, against)


def time_all(lm: probe.LanguageModel, title: str, tools: Sequence[Tool], work: Callable[[Tool], Any], *, repeat: int) -> None:
    """One table: all in turn, and with each name how far its result is from that of plain transformers."""
    found: dict[str, Any] = {}

    def case(tool: Tool) -> Case:
        return Case(tool.name, lambda: found.__setitem__(tool.name, work(tool)))

    plain, *others = map(case, tools)
    rows = once(plain, others) if repeat == 1 else compare(plain, others, repeat=repeat)
    show(
        title,
        [rows[0], *(row._replace(name=f"{row.name} ({apart(lm, found[plain.name], found[row.name])})") for row in rows[1:])],
    )


def apart(lm: probe.LanguageModel, plain: Any, other: Any) -> str:
    """The largest difference of two tables of numbers; how many tokens of two tables are the same."""
    if isinstance(plain, torch.Tensor) and plain.is_floating_point():
        return f"apart {(plain - other).abs().max().item():.0e}" if plain.shape == other.shape else "another shape"
    same = [x == y for x, y in zip(*(_texts(lm, one) for one in (plain, other)), strict=True)]
    return f"{sum(same)} of {len(same)} tokens the same"


def _texts(lm: probe.LanguageModel, found: Any) -> list[str]:
    """The tokens of a table or of a row, as texts."""
    rows = found.tolist() if isinstance(found, torch.Tensor) else found
    flat = [one for row in rows for one in (row if isinstance(row, list) else [row])]
    return [one if isinstance(one, str) else lm.tokenizer.decode([one]) for one in flat]


def _again() -> int:
    """The same command in the environment that has the others; its exit code."""
    checkout = (SOURCE / "pyproject.toml").is_file()
    ours = ["-e", f"{SOURCE}[fast]"] if checkout else [f"mechprobe[fast]=={probe.__version__}"]
    same = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    try:
        python = make_environment(home() / "bench-peers", [*ours, *same, *PEERS])
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(python), "-m", "probe.recipes.bench", *sys.argv[1:]], env=own, cwd=tempfile.gettempdir()
    ).returncode
