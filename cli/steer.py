"""`probe steer`: options in, one library verb, the direction and what speaks for it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options as o

if TYPE_CHECKING:
    from probe.store import Run

Make = Annotated[tuple[Path, Path], typer.Option("--make", metavar="POS NEG", help="Two files of texts, one a line.")]
At = Annotated[str, typer.Option("--at", help="One place, e.g. resid_post@12 or z@5.3:all [default positions: last].")]
To = Annotated[Path, typer.Option("--out", "-o", help="The file of the direction, .safetensors.")]
RunAt = Annotated[Path | None, typer.Option("--run", help="The run directory [default: runs/TIME-steer-WORD].")]


def command(
    make: Make,
    at: At,
    out: To,
    run: RunAt = None,
    model: o.Model = "smollm2",
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Make a direction from two sets of texts, to be used as --edit PLACE=add:FILE:STRENGTH."""
    import probe
    from cli.progress import plain_warnings, progress
    from cli.terminal import show_json

    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = probe.load(
            model, revision=revision, device=device, dtype=dtype, device_map=device_map,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, progress=report,
        )  # fmt: skip
        done = probe.make_direction(lm, *make, at=at, to=out, seed=seed, out=run or "auto", progress=report)
    if as_json:
        show_json(done, "steer")
    else:
        show_direction(done, quiet=quiet)


def show_direction(run: Run, *, quiet: bool) -> None:
    """Print where the direction is, how long it is, how well it tells left-out texts apart, and where the run is."""
    from cli.terminal import run_path

    found = run.summary
    if quiet:
        typer.echo(found["direction"])
        return
    head = "" if found["head"] is None else f".{found['head']}"
    place = found["site"] if found["layer"] < 0 else f"{found['site']}@{found['layer']}{head}"
    typer.echo(f"{found['direction']}: {found['positive']} - {found['negative']} texts at {place}:{found['positions']}")
    typer.echo(f"norm {found['norm']:.3f}, {found['relative_norm']:.3f} of the mean norm there")
    if found["accuracy"] is None:
        typer.echo("nothing can be left out: give at least two texts a set to see whether it tells others apart")
    else:
        typer.echo(
            f"left-out texts on their side: {found['accuracy']:.3f}; with shuffled labels {found['shuffled']:.3f} "
            f"(95 % below {found['shuffled_high']:.3f}), p = {found['p_value']:.3g}"
        )
    typer.echo(f"\nrun: {run_path(run)}")
