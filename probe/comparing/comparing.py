"""The verb `compare`: two models on the same texts, or two runs. Knows the order of things, not how each is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.comparing import aligning, residuals, sides, summary
from probe.comparing.sides import ComparedModels, Side
from probe.errors import BadOption, BadPlace, BadPrompt, NonFinite
from probe.instrument import held_bytes
from probe.interventions import edit_texts, parse_all
from probe.requests import Compare, public
from probe.running import Running, running
from probe.texts import Failed, Prompt, TokenSequence, as_prompts, columns_of, encode, hash_of, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def run_compare(request: Compare) -> stores.Run:
    """Where two models (A, B) differ on the same texts, or two runs of `trace` (or their paths) on what they share.

    edit: changes of B's activations, so that a model can be compared with itself under an edit. The chat template is A's.
    Models of one vocabulary read the same ids: table `comparison`, a row a token (its log-prob by each, KL both ways,
    Jensen-Shannon, total variation and 1 - TV, the acceptance rate if one drafted for the other), and `similarity`, a row a
    layer (cosine, linear CKA). With different tokenizers only log-probs are compared, summed between the characters
    where both have a boundary: table `segments`. Two runs are compared by what was recorded, up to where their texts part.
    Raises `BadPrompt`, `BadOption`, `BadEdit`, `RunError`, `NonFinite`.
    """
    if request.of_runs:
        return _compare_runs(stores.open_run(request.a), stores.open_run(request.b), request)
    pair, inputs = _prepared(request)
    a, b = pair.a.lm, pair.b.lm
    with running(request, a, resolved={"dtype_b": str(b.dtype), "texts_sha256": hash_of(inputs)}) as run:
        run.writer.extend("prompts", columns_of(inputs).types)
        sequences, failed = _encoded(pair, inputs, request)
        if failed and len(inputs) == 1:
            raise failed[0].error
        chosen = residuals.sample([len(s.ids) for s in sequences])
        for i, (sequence, positions) in enumerate(zip(sequences, chosen, strict=True)):
            key = f"text-{sequence.prompt.prompt_id}"
            if run.writer.whole or (run.writer.done(key) and not positions):
                continue
            try:
                with run.writer.unit(key, again=True):  # what is done gives its sample of the streams once more
                    columns = _columns(pair, sequence, positions)
                    run.write("prompts", prompt_columns([sequence], []))
                    _write(run, sequence.prompt.prompt_id, columns)
            except (BadPrompt, BadPlace, NonFinite) as error:
                if len(inputs) == 1:
                    raise
                failed.append(Failed(sequence.prompt._replace(error=error.message), error))
                continue
            run.report("comparing", i + 1, len(sequences))
        if len(failed) == len(inputs):
            raise failed[0].error
        if not run.writer.done("texts"):
            with run.writer.unit("texts"):
                run.write("prompts", prompt_columns([], [one.prompt for one in failed]))
                if pair.samples[0] and any(positions for positions in chosen):
                    run.write("similarity", residuals.similarity_columns(*pair.samples))
        run.warn(*_notes(pair, sequences))
        summary = _summary(run.writer, pair, seed=request.seed, errors=len(failed))
        return run.finish(summary, seed=request.seed, other_model=b.identity)


compare = public(run_compare, Compare)


def plan_compare(request: Compare) -> dict[str, Any]:
    """What `compare` of two models would compute and write, without running them."""
    if request.of_runs:
        raise BadOption("comparing two runs runs no model", hint="leave out --dry-run")
    pair, inputs = _prepared(request)
    a, b = pair.a.lm, pair.b.lm
    sequences, failed = _encoded(pair, inputs, request)
    if not sequences:
        raise failed[0].error
    tokens = sum(len(s.ids) for s in sequences)
    table, size = ("comparison", 110) if pair.by_tokens else ("segments", 60)
    weights = sum(held_bytes(lm.model) for lm in {a, b})
    layers = 0 if pair.why_no_similarity else a.anatomy.n_layers + 1
    return {
        "a": a.title, "b": b.title, "prompts": len(sequences), "tokens": tokens, "passes": 2 * len(sequences),
        "weights_bytes": weights, "tables": {
            "prompts": {"rows": len(inputs), "bytes": 200 * len(inputs)},
            table: {"rows": tokens, "bytes": size * tokens},
            "similarity": {"rows": layers, "bytes": 60 * layers},
        },
    }  # fmt: skip


def _prepared(request: Compare) -> tuple[ComparedModels, Sequence[Prompt]]:
    """Both sides and the texts. Raises `BadOption` and `BadEdit` for what they cannot be asked."""
    a, b = request.a, request.b
    same = sides.one_vocabulary(a, b)
    if request.chat and not same:
        raise BadOption("a chat has another text for each tokenizer", hint="leave out --chat, or render the text yourself")
    why = residuals.why_not(a, b) if same else "the tokenizers differ: their positions are not the same places"
    inputs = as_prompts(request.texts, request)
    return ComparedModels(Side(a), Side(b, parse_all(b, request.edit)), same, why, edit_texts(request.edit)), inputs


def _encoded(pair: ComparedModels, inputs: Sequence[Prompt], request: Compare) -> tuple[list[TokenSequence], list[Failed]]:
    """Every text that both can read, in A's tokens, and every one that they can't with its reason."""
    found: list[TokenSequence] = []
    failed: list[Failed] = []
    for prompt in inputs:
        try:
            if not pair.by_tokens and not isinstance(prompt.content, str):
                raise BadPrompt("a chat has another text for each tokenizer", hint="give the text itself")
            sequence = encode(pair.a.lm, prompt, request)
            if pair.by_tokens:
                sides.check_length(pair.b.lm, sequence.ids)
                if len(sequence.ids) < 2:
                    raise BadPrompt("the text is one token, and nothing predicts a first one", hint="give a longer text")
            found.append(sequence)
        except BadPrompt as error:
            failed.append(Failed(prompt._replace(error=error.message), error))
    return found, failed


def _columns(pair: ComparedModels, sequence: TokenSequence, positions: list[int]) -> dict[str, Any]:
    if pair.by_tokens:
        return sides.by_tokens(pair, sequence.ids, positions)
    columns = sides.by_characters(pair, sequence.rendered)
    if not columns["segment"]:
        raise BadPrompt("the two tokenizers share no boundary in this text", hint="give a longer text")
    return columns


def _write(run: Running, prompt_id: int, columns: dict[str, Any]) -> None:
    table = "segments" if "segment" in columns else "comparison"
    run.write(table, {"prompt_id": [prompt_id] * len(columns["text_start"]), **columns})


def _notes(pair: ComparedModels, sequences: list[TokenSequence]) -> list[str]:
    """What a reader of the comparison must know."""
    a, b = pair.a.lm, pair.b.lm
    notes = list(dict.fromkeys(note for sequence in sequences for note in sequence.notes))
    if not pair.by_tokens:
        return notes
    if a.anatomy.d_vocab != b.anatomy.d_vocab:
        notes.append(
            f"A has {a.anatomy.d_vocab:,} ids and B {b.anatomy.d_vocab:,}: distances are of the distributions over the first "
            f"{pair.shared:,}; the others had a probability of at most {pair.beyond:.2g}"
        )
    if a is not b and any(_cut_otherwise(b, s) for s in sequences if isinstance(s.prompt.content, str)):
        notes.append("B's tokenizer would cut the text otherwise; both read the tokens of A")
    return notes


def _cut_otherwise(lm: LanguageModel, sequence: TokenSequence) -> bool:
    """Whether the model's own tokenizer would make other ids of the text (or some that the model has no row for)."""
    try:
        return lm.encode(sequence.rendered).ids != sequence.ids
    except BadPrompt:
        return True


def _summary(writer: stores.Writer, pair: ComparedModels, *, seed: int, errors: int) -> dict[str, Any]:
    a, b = pair.a.lm, pair.b.lm
    about = {
        "a": a.title, "b": b.title, "dtype_a": str(a.dtype), "dtype_b": str(b.dtype), "edit": pair.edit,
        "aligned_by": "tokens" if pair.by_tokens else "characters", "prompts": writer.read("prompts").num_rows,
        "errors": errors,
    }  # fmt: skip
    if not pair.by_tokens:
        return {**about, **summary.of_segments(writer.read("segments"), seed=seed), "no_similarity": pair.why_no_similarity}
    found = {**about, **summary.of_tokens(writer.read("comparison"), seed=seed, text=a.token_text)}
    if pair.why_no_similarity:
        return {**found, "no_similarity": pair.why_no_similarity}
    return {**found, "similarity": summary.of_layers(writer.read("similarity"))}


def _compare_runs(a: stores.Run, b: stores.Run, request: Compare) -> stores.Run:
    """What two runs recorded of the same text. Distributions were not recorded, so there are no distances."""
    same = aligning.one_tokenizer(a, b)
    matched = aligning.pairs(a, b)
    partings = []
    with running(request, None, resolved={"run_a": a.run_id, "run_b": b.run_id}) as run:
        if run.writer.whole:
            return run.writer.whole
        with run.writer.unit("compare", again=True):
            for number, other in matched:
                if same:
                    columns, parting = aligning.by_tokens(a, b, number, other)
                    partings += [{"prompt_id": number, **parting}] if parting else []
                else:
                    prompt = a.prompts.set_index("prompt_id").loc[number, "text"]
                    columns = aligning.by_characters(a, b, number, other, str(prompt))
                    if not columns["segment"]:
                        raise BadPrompt("the two texts share no boundary", hint="compare longer runs")
                _write(run, number, columns)
        summary = _summary_of_runs(run.writer, a, b, same=same, seed=request.seed)
        return run.finish(
            {**summary, "partings": partings}, seed=request.seed, model=a.manifest.get("model"),
            other_model=b.manifest.get("model"),
        )  # fmt: skip


def _summary_of_runs(writer: stores.Writer, a: stores.Run, b: stores.Run, *, same: bool, seed: int) -> dict[str, Any]:
    names = [str((run.manifest.get("model") or {}).get("name")) for run in (a, b)]
    kinds = [str((run.manifest.get("model") or {}).get("dtype")) for run in (a, b)]
    about = {
        "a": names[0], "b": names[1], "dtype_a": kinds[0], "dtype_b": kinds[1], "edit": [], "runs": [a.run_id, b.run_id],
        "aligned_by": "tokens" if same else "characters", "prompts": 1, "errors": 0,
        "no_similarity": "runs are compared by their tables; compare the models for layers and distributions",
    }  # fmt: skip
    if not same:
        return {**about, **summary.of_segments(writer.read("segments"), seed=seed)}
    table = writer.read("comparison")
    tokens = {**_texts(a), **_texts(b)}
    return {**about, **summary.of_tokens(table, seed=seed, text=lambda i: tokens.get(i, f"id {i}"))}


def _texts(run: stores.Run) -> dict[int, str]:
    """Ids that occur in a run, as text: the tokenizer is not loaded for two runs."""
    rows = run.scan("tokens", columns=["token_id", "token"])
    return dict(zip(rows["token_id"].to_pylist(), rows["token"].to_pylist(), strict=True))
