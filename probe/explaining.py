"""The verb `explain`: how a token of a recorded run became what it is. Reads the run, runs its model once, writes a run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from probe.decoding import Sampling
from probe.errors import RunError
from probe.interventions import applying, parse_all
from probe.language_model import check_model, model_of
from probe.requests import Explain, public
from probe.running import running
from probe.store import Run, open_run
from probe.texts import TokenSequence, recorded_sequence
from probe.texts.explaining import explained, explanation
from probe.tracing.reading import explain_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def run_explain(request: Explain) -> Run:
    """The stages that made tokens of a run of `trace` out of the model's logits, as tables `stages` and `candidates`.

    The run's sampling and edits hold; the model reads the text once. Raises `RunError`, `BadPlace`, `BadOption`, `NonFinite`.
    """
    source = open_run(request.run)
    if source.command != "trace":
        raise RunError(f"this is a run of '{source.command}'", hint="explain reads runs of probe trace")
    arguments = source.manifest["arguments"]
    sampling = Sampling(**(arguments.get("sampling") or {}))
    wanted = explanation(request.at, request.order, sampling)
    assert wanted is not None, "positions were given"
    lm = request.lm or model_of(source)
    check_model(source, lm)
    sequence = recorded_sequence(source, lm, request.prompt_id, 0, str(arguments["split"]))
    edits = parse_all(lm, arguments.get("edit") or (), seed=sampling.seed)
    with running(request, lm, resolved={"source": source.run_id}) as run:
        if not run.writer.done("explain"):
            with run.writer.unit("explain"), _edited(lm, edits, sequence):
                explain_ids(lm, sequence, wanted, sampling, run.writer)
        return run.finish({"explained": explained(run.writer.read)}, seed=sampling.seed, parent=sequence.parent)


explain = public(run_explain, Explain)


def _edited(lm: LanguageModel, edits: Any, sequence: TokenSequence) -> Any:
    """The model with the run's edits at work, if it had any."""
    if not edits:
        return nullcontext()
    n = sequence.n_prompt
    return applying(lm, edits, ids=sequence.ids[:n], n_prompt=n, longest=len(sequence.ids))
