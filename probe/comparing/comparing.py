"""The verb `compare`: two models on the same texts, or two runs. Knows the order of things, not how each is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.comparing import recorded, residuals, sides, summary
from probe.comparing.sides import Pair, Side
from probe.errors import BadOption, BadPlace, BadPrompt, NonFinite, ProbeError
from probe.interventions import Edit, edit_texts, parse_all
from probe.language_model.chat import Chat
from probe.texts import Prompt, TokenSequence, as_prompts, encode, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]


def compare(
    a: LanguageModel | stores.Run | str | Path, b: LanguageModel | stores.Run | str | Path, texts: Any = None, *,
    edit: str | Iterable[str | Edit] = (), chat: bool = False, system: str | None = None,
    template_options: Mapping[str, Any] | None = None, allow_template_loss: bool = False, seed: int = 0,
    out: str | Path | None = None, resume: bool = False, progress: Progress | None = None,
) -> stores.Run:  # fmt: skip
    """Where two models (A, B) differ on the same texts, or two runs of `trace` (or their paths) on what they share.

    texts: as in `trace`. edit: changes of B's activations, so that a model can be compared with itself under an edit; A
    and B may be one object. chat, system, template_options, allow_template_loss: apply A's chat template, as in
    `trace`.
    Models of one vocabulary read the same ids: table `comparison`, a row a token (its log-prob by each, KL both ways,
    Jensen-Shannon, total variation and 1 - TV, the acceptance rate if one drafted for the other), and `similarity`, a row a
    layer (cosine, linear CKA). With different tokenizers only log-probs are compared, summed between the characters
    where both have a boundary: table `segments`. Two runs are compared by what was recorded, up to where their texts part.
    Raises `BadPrompt`, `BadOption`, `BadEdit`, `RunError`, `NonFinite`.
    """
    how = Chat(chat, system, template_options or {}, allow_template_loss)
    if isinstance(a, stores.Run | str | Path) and isinstance(b, stores.Run | str | Path):
        if texts is not None or edit or how != Chat():
            raise BadOption("two runs hold their own texts", hint="leave out the text, --edit, --chat and its options")
        return _compare_runs(stores.open_run(a), stores.open_run(b), seed=seed, out=out, resume=resume)
    if isinstance(a, stores.Run | str | Path) or isinstance(b, stores.Run | str | Path):
        raise BadOption("one is a run and the other a model", hint="give two models and a text, or two runs")
    pair, inputs = _prepared(a, b, texts, edit, how)
    path = stores.place_for("compare", out, resume=resume)
    with stores.create(path, command="compare", arguments=_arguments(pair, inputs, how), resume=resume) as writer:
        sequences, failed = _encoded(pair, inputs, how)
        if failed and len(inputs) == 1:
            raise failed[0][1]
        chosen = residuals.sample([len(s.ids) for s in sequences])
        for i, (sequence, positions) in enumerate(zip(sequences, chosen, strict=True)):
            key = f"text-{sequence.prompt.prompt_id}"
            if writer.whole or (writer.done(key) and not positions):
                continue
            try:
                with writer.unit(key, again=True):  # what is done gives its sample of the streams once more
                    columns = _columns(pair, sequence, positions)
                    writer.write("prompts", prompt_columns([sequence], []))
                    _write(writer, sequence.prompt.prompt_id, columns)
            except (BadPrompt, BadPlace, NonFinite) as error:
                if len(inputs) == 1:
                    raise
                failed.append((sequence.prompt._replace(error=error.message), error))
                continue
            if progress:
                progress("comparing", i + 1, len(sequences))
        if len(failed) == len(inputs):
            raise failed[0][1]
        if not writer.done("texts"):
            with writer.unit("texts"):
                writer.write("prompts", prompt_columns([], [prompt for prompt, _ in failed]))
                if pair.samples[0] and any(positions for positions in chosen):
                    writer.write("similarity", residuals.similarity_columns(*pair.samples))
        _warn(writer, pair, sequences)
        return writer.finish(
            summary=_summary(writer, pair, seed=seed, errors=len(failed)), model=pair.a.lm.identity,
            other_model=pair.b.lm.identity, anatomy=pair.a.lm.anatomy.to_dict(), seed=seed,
        )  # fmt: skip


def plan_compare(a: LanguageModel, b: LanguageModel, texts: Any, **what: Any) -> dict[str, Any]:
    """What `compare` of two models would compute and write, without running them; keywords as there."""
    how = Chat(
        what.get("chat", False), what.get("system"), what.get("template_options") or {},
        what.get("allow_template_loss", False),
    )  # fmt: skip
    pair, inputs = _prepared(a, b, texts, what.get("edit", ()), how)
    sequences, failed = _encoded(pair, inputs, how)
    if not sequences:
        raise failed[0][1]
    tokens = sum(len(s.ids) for s in sequences)
    table, size = ("comparison", 110) if pair.by_tokens else ("segments", 60)
    weights = sum(p.numel() * p.element_size() for lm in {a, b} for p in lm.model.parameters())
    layers = 0 if pair.why_no_similarity else a.anatomy.n_layers + 1
    return {
        "a": a.title, "b": b.title, "prompts": len(sequences), "tokens": tokens, "passes": 2 * len(sequences),
        "weights_bytes": weights, "tables": {
            "prompts": {"rows": len(inputs), "bytes": 200 * len(inputs)},
            table: {"rows": tokens, "bytes": size * tokens},
            "similarity": {"rows": layers, "bytes": 60 * layers},
        },
    }  # fmt: skip


def _prepared(
    a: LanguageModel, b: LanguageModel, texts: Any, edit: str | Iterable[str | Edit], how: Chat
) -> tuple[Pair, list[Prompt]]:
    if texts is None:
        raise BadOption("two models need a text to read", hint="give one after them, or a file of texts with --file")
    how.check()
    same = sides.one_vocabulary(a, b)
    if how.apply and not same:
        raise BadOption(
            "a chat has another text for each tokenizer", hint="leave out --chat, or render the text yourself"
        )
    why = residuals.why_not(a, b) if same else "the tokenizers differ: their positions are not the same places"
    return Pair(Side(a), Side(b, parse_all(b, edit)), same, why, edit_texts(edit)), list(as_prompts(texts))


def _encoded(
    pair: Pair, inputs: list[Prompt], how: Chat
) -> tuple[list[TokenSequence], list[tuple[Prompt, ProbeError]]]:
    """Every text that both can read, in A's tokens, and every one that they can't with its reason."""
    found: list[TokenSequence] = []
    failed: list[tuple[Prompt, ProbeError]] = []
    for prompt in inputs:
        try:
            if not pair.by_tokens and not isinstance(prompt.content, str):
                raise BadPrompt("a chat has another text for each tokenizer", hint="give the text itself")
            sequence = encode(pair.a.lm, prompt, how)
            if pair.by_tokens:
                sides.check_length(pair.b.lm, sequence.ids)
                if len(sequence.ids) < 2:
                    raise BadPrompt(
                        "the text is one token, and nothing predicts a first one", hint="give a longer text"
                    )
            found.append(sequence)
        except BadPrompt as error:
            failed.append((prompt._replace(error=error.message), error))
    return found, failed


def _columns(pair: Pair, sequence: TokenSequence, positions: list[int]) -> dict[str, Any]:
    if pair.by_tokens:
        return sides.by_tokens(pair, sequence.ids, positions)
    columns = sides.by_characters(pair, sequence.rendered)
    if not columns["segment"]:
        raise BadPrompt("the two tokenizers share no boundary in this text", hint="give a longer text")
    return columns


def _write(writer: stores.Writer, prompt_id: int, columns: dict[str, Any]) -> None:
    table = "segments" if "segment" in columns else "comparison"
    writer.write(table, {"prompt_id": [prompt_id] * len(columns["text_start"]), **columns})


def _warn(writer: stores.Writer, pair: Pair, sequences: list[TokenSequence]) -> None:
    a, b = pair.a.lm, pair.b.lm
    for note in dict.fromkeys(note for sequence in sequences for note in sequence.notes):
        writer.warn(note)
    if not pair.by_tokens:
        return
    if a.anatomy.d_vocab != b.anatomy.d_vocab:
        writer.warn(
            f"A has {a.anatomy.d_vocab:,} ids and B {b.anatomy.d_vocab:,}: distances are of the distributions over the first "
            f"{pair.shared:,}; the others had a probability of at most {pair.beyond:.2g}"
        )
    if a is not b and any(_cut_otherwise(b, s) for s in sequences if isinstance(s.prompt.content, str)):
        writer.warn("B's tokenizer would cut the text otherwise; both read the tokens of A")


def _cut_otherwise(lm: LanguageModel, sequence: TokenSequence) -> bool:
    """Whether the model's own tokenizer would make other ids of the text (or some that the model has no row for)."""
    try:
        return lm.encode(sequence.rendered).ids != sequence.ids
    except BadPrompt:
        return True


def _summary(writer: stores.Writer, pair: Pair, *, seed: int, errors: int) -> dict[str, Any]:
    a, b = pair.a.lm, pair.b.lm
    about = {
        "a": a.title, "b": b.title, "dtype_a": str(a.dtype), "dtype_b": str(b.dtype), "edit": pair.edit,
        "aligned_by": "tokens" if pair.by_tokens else "characters", "prompts": writer.read("prompts").num_rows,
        "errors": errors,
    }  # fmt: skip
    if not pair.by_tokens:
        return {
            **about,
            **summary.of_segments(writer.read("segments"), seed=seed),
            "no_similarity": pair.why_no_similarity,
        }
    found = {**about, **summary.of_tokens(writer.read("comparison"), seed=seed, text=a.token_text)}
    if pair.why_no_similarity:
        return {**found, "no_similarity": pair.why_no_similarity}
    return {**found, "similarity": summary.of_layers(writer.read("similarity"))}


def _compare_runs(
    a: stores.Run, b: stores.Run, *, seed: int, out: str | Path | None, resume: bool
) -> stores.Run:  # fmt: skip
    """What two runs recorded of the same text. Distributions were not recorded, so there are no distances."""
    same = recorded.one_tokenizer(a, b)
    matched = recorded.pairs(a, b)
    partings = []
    about = {"a": a.run_id, "b": b.run_id}
    path = stores.place_for("compare", out, resume=resume)
    with stores.create(path, command="compare", arguments=about, resume=resume) as writer:
        if writer.whole:
            return writer.whole
        with writer.unit("compare", again=True):
            for number, other in matched:
                if same:
                    columns, parting = recorded.by_tokens(a, b, number, other)
                    partings += [{"prompt_id": number, **parting}] if parting else []
                else:
                    prompt = a.prompts.set_index("prompt_id").loc[number, "text"]
                    columns = recorded.by_characters(a, b, number, other, str(prompt))
                    if not columns["segment"]:
                        raise BadPrompt("the two texts share no boundary", hint="compare longer runs")
                _write(writer, number, columns)
        found = _summary_of_runs(writer, a, b, same=same, seed=seed)
        return writer.finish(
            summary={**found, "partings": partings}, model=a.manifest.get("model"), other_model=b.manifest.get("model"),
            seed=seed,
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


def _arguments(pair: Pair, inputs: list[Prompt], how: Chat) -> dict[str, Any]:
    a, b = pair.a.lm, pair.b.lm
    return {
        "a": a.title, "b": b.title, "dtype_a": str(a.dtype), "dtype_b": str(b.dtype), "edit": pair.edit,
        "prompts": len(inputs), **how.arguments(),
    }  # fmt: skip
