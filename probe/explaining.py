"""The verb `explain`: how a token of a recorded run became what it is. Reads the run, runs its model once, writes a run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.decoding import Sampling
from probe.errors import RunError
from probe.interventions import applying, parse_all
from probe.language_model import check_model, model_of
from probe.texts import TokenSequence, recorded_sequence
from probe.texts.explaining import explained, explanation
from probe.tracing.reading import explain_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def explain(
    run: stores.Run | str | Path, at: str | int, *, order: str | None = None, lm: LanguageModel | None = None,
    prompt_id: int = 0, out: str | Path | None = None,
) -> stores.Run:  # fmt: skip
    """The stages that made tokens of a run of `trace` out of the model's logits, as tables `stages` and `candidates`.

    at: positions, as in a place (`7`, `-1`, `completion`). order: `hf` (what happened), or also `vllm`, `llamacpp` or `all`.
    lm: the run's own model, if it is loaded already. The run's sampling and edits hold; the model reads the text once.
    Raises `RunError`, `BadPlace`, `BadOption`, `NonFinite`.
    """
    source = stores.open_run(run)
    if source.command != "trace":
        raise RunError(f"this is a run of '{source.command}'", hint="explain reads runs of probe trace")
    arguments = source.manifest["arguments"]
    sampling = Sampling(**(arguments.get("sampling") or {}))
    wanted = explanation(at, order, sampling)
    assert wanted is not None
    lm = lm or model_of(source)
    check_model(source, lm)
    sequence = recorded_sequence(source, lm, prompt_id, 0, str(arguments["split"]))
    edits = parse_all(lm, arguments.get("edit") or (), seed=sampling.seed)
    path = stores.fresh_path("explain") if out == "auto" else Path(out) if out else None
    about = {
        "source": source.run_id,
        "prompt_id": prompt_id,
        "explain": str(wanted.positions),
        "order": list(wanted.orders),
    }
    with stores.create(path, command="explain", arguments=about) as writer:
        with writer.unit("explain"), _edited(lm, edits, sequence):
            explain_ids(lm, sequence, wanted, sampling, writer)
        return writer.finish(
            summary={"explained": explained(writer.read)}, model=lm.identity, anatomy=lm.anatomy.to_dict(),
            seed=sampling.seed, parent=sequence.parent,
        )  # fmt: skip


def _edited(lm: LanguageModel, edits: Any, sequence: TokenSequence) -> Any:
    """The model with the run's edits at work, if it had any."""
    if not edits:
        return nullcontext()
    n = sequence.n_prompt
    return applying(lm, edits, ids=sequence.ids[:n], n_prompt=n, longest=len(sequence.ids))
