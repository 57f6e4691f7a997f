"""`probe steer`: options in, one library verb, the direction and what speaks for it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .options import prompts_given

if TYPE_CHECKING:
    from probe.store import Run

Make = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--make", metavar="POS NEG", help="Make a direction of two files of texts."),
]
Scan = Annotated[Path | None, typer.Option("--scan", help="A direction's file: its effect against its strength.")]
At = Annotated[
    str | None,
    typer.Option("--at", help="One place, e.g. resid_post@12 or z@5.3:all [default positions: last; --scan: all]."),
]
To = Annotated[Path | None, typer.Option("--out", "-o", help="The file of the direction that is made, .safetensors.")]
RunAt = Annotated[Path | None, typer.Option("--run", help="The run directory [default: runs/TIME-steer-WORD].")]
Resume = Annotated[bool, typer.Option("--resume", help="Complete the interrupted run at --run.")]
PromptText = Annotated[str | None, typer.Argument(help="What --scan adds the direction to; many with --file.")]
Answer = Annotated[str | None, typer.Option("--answer", help="Measure the log-prob of this token after the prompt.")]
Against = Annotated[str | None, typer.Option("--against", help="Less the log-prob of this one.")]
Matching = Annotated[str | None, typer.Option("--matching", help="Or: whether what is written matches this regex.")]
Generate = Annotated[int, typer.Option("--generate", "-n", min=1, help="Tokens that are written for --matching.")]
Strengths = Annotated[str, typer.Option("--strengths", help="Numbers with commas; 0 is always among them.")]
Controls = Annotated[int, typer.Option("--controls", min=1, help="Random directions of the same norm.")]


def command(
    prompt: PromptText = None,
    make: Make = None,
    scan: Scan = None,
    at: At = None,
    out: To = None,
    file: o.PromptFile = None,
    form: o.Format = None,
    column: o.TextColumn = None,
    answer: Answer = None,
    against: Against = None,
    matching: Matching = None,
    generate: Generate = 24,
    strengths: Strengths = "-8,-4,-2,-1,1,2,4,8",
    controls: Controls = 20,
    run: RunAt = None,
    resume: Resume = False,
    model: o.Model = "smollm2",
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    context_length: o.ContextLength = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Make a direction from two sets of texts (--make), or measure what one does at many strengths (--scan)."""
    if (make is None) == (scan is None):
        raise typer.BadParameter("give --make POS NEG, or --scan FILE")
    if make is not None and (at is None or out is None or prompt is not None or file is not None):
        raise typer.BadParameter("--make takes --at PLACE and -o FILE, and no prompt")
    if scan is not None and out is not None:
        raise typer.BadParameter("--scan makes no direction: say where the run goes with --run")
    asked: dict[str, Any] = (
        {} if scan is None else {"prompts": prompts_given(prompt, file, form, column), "strengths": _numbers(strengths)}
    )
    import probe

    from .progress import plain_warnings, progress
    from .terminal import show_json

    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = probe.load(
            model, revision=revision, device=device, dtype=dtype, device_map=device_map,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            adapter=adapter, context_length=context_length, progress=report,
        )  # fmt: skip
        if make is not None:
            done = probe.make_direction(
                lm, *make, at=str(at), to=str(out), seed=seed, out=run or "auto", resume=resume, progress=report
            )
        else:
            done = probe.steer(
                lm, str(scan), **asked, at=at, answer=answer, against=against, matching=matching, generate=generate,
                controls=controls, seed=seed, out=run or "auto", resume=resume, progress=report,
            )  # fmt: skip
    if as_json:
        show_json(done, "steer")
    elif make is not None:
        show_direction(done, quiet=quiet)
    else:
        show_scan(done, quiet=quiet)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not numbers with commas") from error


def show_scan(run: Run, *, quiet: bool) -> None:
    """Print the effect at each strength with its interval, beside the random directions' and what it costs."""
    from .terminal import run_path, show_table, show_warnings

    found = run.summary
    if quiet:
        typer.echo(run_path(run))
        return
    place = found["site"] if found["layer"] < 0 else f"{found['site']}@{found['layer']}"
    where = f"{place}:{found['positions']} of {found['prompts']} prompts"
    typer.echo(f"strength x direction (norm {found['norm']:.3f}) added to {where}")
    typer.echo(f"effect on: {found['metric']}; beside {found['controls']} random directions of the same norm")
    show_warnings(run)
    typer.echo("")
    header = (
        "strength",
        "value",
        "effect",
        "95 % interval",
        "random",
        "least, greatest",
        "p",
        "KL",
        "nats a token lost",
    )
    rows = [
        (
            f"{r['strength']:g}", f"{r['value']:.3f}", f"{r['effect']:+.3f}",
            "" if r["ci_low"] is None else f"[{r['ci_low']:+.3f}, {r['ci_high']:+.3f}]",
            f"{r['control_mean']:+.3f}", f"[{r['control_low']:+.3f}, {r['control_high']:+.3f}]",
            "" if r["strength"] == 0 else f"{r['p_value']:.3g}",
            "" if r["kl"] is None else f"{r['kl']:.3f}", "" if r["lost"] is None else f"{r['lost']:+.3f}",
        )
        for r in found["strengths"]
    ]  # fmt: skip
    show_table(header, rows)
    if found["prompts"] == 1:
        typer.echo("\none prompt: no interval over prompts")
    typer.echo(f"\nrun: {run_path(run)}")


def show_direction(run: Run, *, quiet: bool) -> None:
    """Print where the direction is, how long it is, how well it tells left-out texts apart, and where the run is."""
    from .terminal import run_path

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
