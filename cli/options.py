"""Options that several commands share, each defined once; no defaults that need a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", envvar="PROBE_MODEL", show_envvar=True,
        help="Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY (random weights).",
    ),
]  # fmt: skip
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Load pickled weights, which can run code.")]
Fetch = Annotated[bool, typer.Option("--allow-fetch", help="Download a model that only the run names.")]
Adapter = Annotated[
    str | None, typer.Option("--adapter", help="A directory of the peft library (LoRA, …), merged into the weights.")
]
ContextLength = Annotated[
    int | None,
    typer.Option("--context-length", min=1, help="Positions that the model holds, where its config says too few."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:I or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="accelerate's map, e.g. auto.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The run directory [default: runs/TIME-COMMAND-WORD].")]
Resume = Annotated[bool, typer.Option("--resume", help="Complete the interrupted run at --out.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seeds every random choice.")]
Chat = Annotated[bool, typer.Option("--chat/--raw", help="Apply the model's chat template to the prompt.")]
System = Annotated[str | None, typer.Option("--system", help="System message; needs --chat.")]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template-option", help="Set a variable of the template: NAME=VALUE (JSON or text); repeatable."),
]
TemplateLoss = Annotated[
    bool, typer.Option("--allow-template-loss", help="Go on where the template leaves out what a message says.")
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Many prompts: .txt (one a line), .jsonl, .json, .csv, .parquet; - for stdin."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="What --file or stdin is: txt, jsonl, json, csv, tsv, parquet [default: by content]."
    ),
]
TextColumn = Annotated[str | None, typer.Option("--column", help="The prompts' column [default: messages or prompt].")]
AsJson = Annotated[bool, typer.Option("--json", help="Exactly one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only where the run is.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be computed; write nothing.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy.", show_default="0.0")
]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, help="Sample among the K most probable tokens.")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Sample within this mass.")]
MinP = Annotated[float | None, typer.Option("--min-p", min=0.0, max=1.0, help="Drop below this share of the top.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", min=1e-6, help="1 is none.", show_default="1.0")
]
GenerationConfig = Annotated[
    str,
    typer.Option(
        "--generation-config", help="model: draw by the model's generation_config.json, where no option says otherwise."
    ),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop at this string; repeatable.")]
Edits = Annotated[
    list[str] | None,
    typer.Option("--edit", "-e", help="Change activations: PLACE=OP, e.g. z@5.3=zero; repeatable."),
]
Split = Annotated[str, typer.Option("--split", help="sentence, line, paragraph, token, regex:PATTERN or spans:FILE.")]


PromptText = Annotated[
    str | None,
    typer.Argument(
        help="The prompt; - reads many from standard input (see --file). After --, it may begin with a dash."
    ),
]
Top = Annotated[int, typer.Option("--top", min=0, help="Alternatives a position.")]


def template(options: list[str] | None, allow_loss: bool) -> dict[str, Any]:
    """The template's options as keywords of a verb."""
    from probe.requests.groups import parse_options

    return {"template_options": parse_options(options or []), "allow_template_loss": allow_loss}


def prompts_given(prompt: str | None, file: Path | None, form: str | None = None, column: str | None = None) -> object:
    """The prompt text, or the prompts of a file or of standard input."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give a prompt, or a file of prompts with --file")
    if prompt is not None and prompt != "-":
        if form is not None or column is not None:
            raise typer.BadParameter("--format and --column are for --file and for standard input")
        return prompt
    from probe.texts import read_prompts

    return read_prompts(sys.stdin.buffer if file is None or str(file) == "-" else file, kind=form, column=column)
