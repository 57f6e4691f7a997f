"""`probe lens`: options in, one library verb, the grid of guesses out."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from . import sources as r
from . import sources as s

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel
    from probe.store import Run

Target = Annotated[
    str | None,
    typer.Option("--target", help="Follow this text's first token [default: what follows; at the end, the final top]."),
]
Top = Annotated[int, typer.Option("--top", min=1, help="Guesses kept a layer and position.")]
# background colours of the terminal's 256, from an unsure guess to a sure one, and the probability where each begins
SHADES = ((0.0, None), (0.1, 194), (0.3, 157), (0.6, 120), (0.9, 83))
WIDTH = 10  # of a cell


def command(
    source: s.Source,
    target: Target = None,
    position: s.Position = "all",
    edit: o.Edits = None,
    top: Top = 5,
    prompt: r.PromptId = None,
    branch: r.Branch = 0,
    chat: o.Chat = False,
    system: o.System = None,
    template_option: o.TemplateOption = None,
    allow_template_loss: o.TemplateLoss = False,
    model: s.Model = None,
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    context_length: o.ContextLength = None,
    allow_fetch: o.Fetch = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """What would each layer answer? Its stream through the model's own final norm and head, layer by position."""
    import probe
    from probe.lensing import plan_lens

    from .progress import plain_warnings, progress
    from .terminal import show_json, show_plan, show_warnings

    what: dict[str, Any] = {
        "target": target, "position": position, "edit": edit or [], "top": top, "prompt_id": prompt, "branch": branch,
        "chat": chat, "system": system,
        **o.template(template_option, allow_template_loss), "seed": seed, "other_model": model is not None,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = s.load_for(
            source, model, revision=revision, device=device, dtype=dtype, device_map=device_map,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            adapter=adapter, context_length=context_length, allow_fetch=allow_fetch, progress=report,
        )  # fmt: skip
        if dry_run:
            show_plan(plan_lens(lm, source, **what), as_json=as_json)
            return
        run = probe.lens(lm, source, **what, out=out or "auto", resume=resume, progress=report)
    show_warnings(run)
    if as_json:
        show_json(run, "lens")
    else:
        show_lens(run, lm, quiet=quiet)


def show_lens(run: Run, lm: LanguageModel, *, quiet: bool) -> None:
    """Print each layer's top token at each position, the layers at the last position, and where the run is."""
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    _grid(run.lens, run.lens_positions, lm)
    last = run.summary["last"]
    typer.echo(f"\nafter {visible(last['token'])} at {last['pos']}, target {visible(last['target_token'])}")
    rows = [
        (
            str(row["layer"]), visible(row["top"]), f"{row['prob']:.3f}", str(row["target_rank"]),
            f"{row['target_prob']:.3g}", f"{row['entropy']:.3f}", f"{row['kl_to_final']:.3f}",
        )
        for row in reversed(last["layers"])
    ]  # fmt: skip
    show_table(("layer", "top", "prob", "target rank", "target prob", "entropy", "KL(final‖layer)"), rows)
    typer.echo(f"the top token there no longer changes from layer {last['settled_layer']} on")
    typer.echo(f"\nrun: {run_path(run)}")


def _grid(lens: pd.DataFrame, positions: pd.DataFrame, lm: LanguageModel) -> None:
    """Layers downwards from the last, positions to the right; on a terminal as many of the last positions as fit."""
    from .terminal import visible

    shown = list(positions["pos"])
    if sys.stdout.isatty():
        from .printing import console

        fits = max(1, (console().width - 8) // (WIDTH + 2))
        if len(shown) > fits:
            typer.echo(f"the last {fits} of {len(shown)} positions; choose others with --position")
            shown = shown[-fits:]
    cut = [f"{pos} {visible(token)[:WIDTH]}" for pos, token in zip(positions["pos"], positions["token"], strict=True)]
    cells: dict[tuple[int, int], tuple[str, float]] = {}
    for row in lens.itertuples():
        best = lm.token_text(int(row.top_ids[0]))
        cells[int(row.layer), int(row.pos)] = visible(best)[: WIDTH + 3], math.exp(row.top_logprobs[0])
    header = ["layer", *cut[-len(shown) :]]
    table = [
        [(str(layer), 0.0), *(cells[layer, pos] for pos in shown)]
        for layer in sorted(set(lens["layer"]), reverse=True)
    ]  # fmt: skip
    settled = [(str(n), 0.0) for n in positions["settled_layer"][-len(shown) :]]
    _print_cells(header, [*table, [("settled", 0.0), *settled]])


def _print_cells(header: list[str], rows: list[list[tuple[str, float]]]) -> None:
    """Cells (text, probability) in columns; shaded by probability on a terminal."""
    from .terminal import show_table

    if not sys.stdout.isatty():
        show_table(header, [[text for text, _ in row] for row in rows])
        return
    from rich.table import Table
    from rich.text import Text

    from .printing import console

    table = Table(padding=(0, 1), box=None)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        styled = []
        for text, probability in row:
            shade = [colour for at, colour in SHADES if probability >= at][-1]
            styled.append(Text(text, style=f"color(16) on color({shade})" if shade else ""))
        table.add_row(*styled)
    console().print(table)
