"""Files of texts, read once: top texts and means against plain forwards in float64, whatever the batches, windows and parts."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.capturing import MemorySink, observe, read
from probe.corpora import reading, windows
from probe.corpora.moments import Moments
from probe.corpora.value_counts import BINS, ValueCounts, bins_of
from probe.errors import BadEdit, BadOption, BadPlace, BadPrompt, NonFinite, ProbeError, RunError
from probe.interventions import cells, save_direction
from probe.language_model import LanguageModel
from probe.reporting.views import Bars
from probe.requests import CorpusMeans
from tests.test_kill_rewind import killed, whole_again
from tests.test_panels import panels, same_as_the_table

TEXTS = [
    "one two three",
    "a dog barked at the cat",
    "z",
    "",
    "日本 is east",
    "Paris is in France",
    "q w e",
    "seven times eight",
] * 2
D_HEAD = 16


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


def plain(lm: LanguageModel, texts: list[str], module: str, *, takes_in: bool = False) -> list[np.ndarray]:
    """(pos, d) float64 of each text: what goes into a module or comes out of it, by a plain forward of each text alone."""
    model, kept = copy.deepcopy(lm.model).double(), []

    def keep(_: Any, args: Any, output: Any) -> None:
        found = args[0] if takes_in else output if isinstance(output, torch.Tensor) else output[0]
        kept.append(found[0].detach().numpy().copy())

    model.get_submodule(module).register_forward_hook(keep)
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([lm.encode(text).ids]))
    return kept


def listed(run: Any, place: str, kind: str) -> list[dict[str, Any]]:
    rows = run.scan("top", place=place, kind=kind).to_pylist()
    return sorted(rows, key=lambda row: row["rank"])


def test_top_is_what_plain_forwards_in_float64_give(lm: LanguageModel) -> None:
    run = probe.top(lm, TEXTS, at=["resid_post@1", "z@2.3"], top=4, batch_tokens=64)
    streams = [np.linalg.norm(x, axis=-1) for x in plain(lm, TEXTS, "model.layers.1")]
    z = plain(lm, TEXTS, "model.layers.2.self_attn.o_proj", takes_in=True)
    heads = [np.linalg.norm(x[:, 3 * D_HEAD : 4 * D_HEAD], axis=-1) for x in z]
    for place, norms in (("resid_post@1", streams), ("z@2.3", heads)):
        counted = {i: own[1:] for i, own in enumerate(norms) if len(own) > 1}  # position 0 does not count
        for kind, best, sign in (("top", np.argmax, -1), ("bottom", np.argmin, 1)):
            tokens = {i: int(best(own)) for i, own in counted.items()}
            # the texts come twice: the first of two equal ones is first
            order = sorted(counted, key=lambda i: (sign * round(float(counted[i][tokens[i]]), 4), i))[:4]
            rows = listed(run, place, kind)
            assert [(row["prompt_id"], row["pos"]) for row in rows] == [(i, tokens[i] + 1) for i in order]
            np.testing.assert_allclose([row["value"] for row in rows], [counted[i][tokens[i]] for i in order], rtol=1e-5)
            for row in rows:
                ids = lm.encode(TEXTS[row["prompt_id"]]).ids
                assert row["token_id"] == ids[row["pos"]] and row["token"] == lm.labels(ids)[row["pos"]]
        values = np.concatenate(list(counted.values()))
        (about,) = run.scan("top_values", place=place).to_pylist()
        assert about["n"] == len(values) and about["measure"] == "norm" and about["above_zero"] == 1.0
        np.testing.assert_allclose([about["mean"], about["sd"]], [values.mean(), values.std()], rtol=1e-5)
        np.testing.assert_allclose([about["minimum"], about["maximum"]], [values.min(), values.max()], rtol=1e-5)
        np.testing.assert_allclose(about["q75"], np.quantile(values, 0.75, method="inverted_cdf"), rtol=0.011)
        histogram = run.scan("top_histogram", place=place).to_pylist()
        assert sum(row["count"] for row in histogram) == len(values)
    random = listed(run, "z@2.3", "random")
    assert [row["prompt_id"] for row in random] == [row["prompt_id"] for row in listed(run, "resid_post@1", "random")]
    assert all(row["value"] == pytest.approx(heads[row["prompt_id"]][1:].max(), rel=1e-5) for row in random)


def test_means_are_those_of_plain_forwards_in_float64_and_ablate_as_a_hook_does(lm: LanguageModel) -> None:
    run = probe.means(lm, TEXTS, at=["resid_post@0..1", "z@1"], batch_tokens=50, out=None)
    for layer in (0, 1):
        x = np.concatenate([own[1:] for own in plain(lm, TEXTS, f"model.layers.{layer}")])
        (row,) = run.scan("means", site="resid_post", layer=layer).to_pylist()
        assert (row["n"], row["head"], row["units"]) == (len(x), -1, None)
        for name, expected in (("mean", x.mean(0)), ("variance", x.var(0)), ("minimum", x.min(0)), ("maximum", x.max(0))):
            np.testing.assert_allclose(row[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
        norms = [np.linalg.norm(x, axis=-1).mean(), np.linalg.norm(x.mean(0))]
        np.testing.assert_allclose([row["mean_norm"], row["norm_of_mean"]], norms, rtol=1e-5)
    z = np.concatenate([own[1:] for own in plain(lm, TEXTS, "model.layers.1.self_attn.o_proj", takes_in=True)])
    text = "Paris is"
    model = copy.deepcopy(lm.model)
    mean = torch.tensor(z.mean(0)[2 * D_HEAD : 3 * D_HEAD], dtype=torch.float32)

    def ablate(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = args[0].clone()
        changed[..., 2 * D_HEAD : 3 * D_HEAD] = mean
        return (changed, *args[1:])

    model.get_submodule("model.layers.1.self_attn.o_proj").register_forward_pre_hook(ablate)
    with torch.no_grad():
        logits = model(torch.tensor([lm.encode(text).ids])).logits[0]
        unchanged = lm.model(torch.tensor([lm.encode(text).ids])).logits[0]
    with probe_edit(lm, run, text) as edited:
        torch.testing.assert_close(edited, logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(edited, unchanged, atol=1e-3)


class probe_edit:
    """The logits of a text under `z@1.2=mean:RUN`."""

    def __init__(self, lm: LanguageModel, run: Any, text: str) -> None:
        from probe.interventions import parse_edits

        self.lm, self.ids = lm, lm.encode(text).ids
        self.edits = parse_edits(lm, ["z@1.2=mean:RUN"], runs={"RUN": run})
        with pytest.raises(BadEdit, match=r"no mean of z@2\.0"):
            parse_edits(lm, ["z@2=mean:RUN"], runs={"RUN": run})

    def __enter__(self) -> torch.Tensor:
        from probe.interventions import applying

        with applying(self.lm, self.edits, ids=self.ids, n_prompt=len(self.ids)), torch.no_grad():
            return self.lm.model(torch.tensor([self.ids])).logits[0]

    def __exit__(self, *_: object) -> None:
        return None


def rows_of(run: Any) -> dict[str, list[dict[str, Any]]]:
    return {name: run.table_arrow(name).drop(["run_id"]).to_pylist() for name in run.tables}


def close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, rel=1e-4, abs=1e-5) if isinstance(other, float) else other)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_batches_change_nothing_beyond_rounding(family: str) -> None:
    own = probe.load(f"tiny:{family}")
    draw = np.random.default_rng(3)  # no two places alike: equal values may change places by rounding
    long = ["".join(draw.choice(list("abcdefghijklmno pqrstuv"), n)) for n in (70, 3, 20, 1, 9, 31, 90)]
    found = [
        (
            rows_of(probe.top(own, long, at=["resid_post@1", "mlp_out@0"], top=3, batch_tokens=tokens, window=20, skip=2)),
            rows_of(probe.means(own, long, at=["resid_post@all", "z@1"], batch_tokens=tokens, window=20, skip=2)),
        )
        for tokens in (1, 4096)
    ]
    (alone, alone_means), (batched, batched_means) = found
    assert close(alone["top_values"], batched["top_values"]) and close(alone["top"], batched["top"])
    assert close(alone_means["means"], batched_means["means"])


@pytest.mark.parametrize("bos", [True, False])
def test_every_token_after_the_first_counts_once_in_windows(bos: bool) -> None:
    """A later window has the beginning token, what is skipped as context, and then the text as it goes on."""
    for skip in (0, 1, 3):
        for n in range(1, 40):
            ids = [7 if bos else 9, *range(100, 99 + n)]
            found = list(windows.cut(4, ids, size=6, skip=skip, bos=7))
            counted = Counter(window.start + i for window in found for i in range(window.lead, len(window.ids)))
            assert counted == Counter(range(skip, n))
            for window in found:
                assert len(window.ids) <= 6 and window.prompt_id == 4
                assert all(window.ids[i] == ids[window.start + i] for i in range(window.lead, len(window.ids)))
                if window.number:
                    head = [7] if bos else []
                    lead = max(skip, len(head))
                    begins = window.start + lead
                    assert window.ids[:lead] == [*head, *ids[begins - (lead - len(head)) : begins]]


def test_a_text_longer_than_the_context_is_cut_and_its_token_has_its_own_position(lm: LanguageModel) -> None:
    text = "abc " * 40 + "Q" + " xyz" * 30
    run = probe.top(lm, text, at="embed", project=embedding_of(lm, "Q"), window=32, top=2)
    first = listed(run, "embed", "top")[0]
    ids = lm.encode(text).ids
    assert ids[first["pos"]] == first["token_id"] == lm.ids_of("Q")[0] and first["window"] > 0 and first["prompt_id"] == 0
    assert "cut into windows" in run.manifest["warnings"][0] and run.summary["counted"] == len(ids) - 1
    assert first["token"] == "Q" and text.startswith(first["after"], text.index("Q") + 1)
    assert run.summary["values"][0]["measure"] == "projection"
    with pytest.raises(BadOption, match="context"):
        probe.top(lm, text, at="embed", window=100_000)


def embedding_of(lm: LanguageModel, text: str, where: Path | None = None) -> Path:
    """The file of a direction: a token's embedding less the mean of all."""
    import tempfile

    matrix = lm.model.get_input_embeddings().weight
    path = (where or Path(tempfile.mkdtemp())) / "v.safetensors"
    save_direction(path, lm, matrix[lm.ids_of(text)[0]] - matrix.mean(0), site="resid_pre", layer=0)
    return path


def test_the_texts_of_a_planted_neuron_come_first(lm: LanguageModel) -> None:
    """Neuron 7 of layer 0 is set to read one token's embedding; no other neuron finds its texts."""
    planted = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name="planted")
    matrix = planted.model.get_input_embeddings().weight
    own = matrix[lm.ids_of("Q")[0]] - matrix.mean(0)
    mlp = planted.model.get_submodule("model.layers.0.mlp")
    with torch.no_grad():
        planted.model.get_submodule("model.layers.0.self_attn.o_proj").weight.zero_()  # type: ignore[union-attr, operator]
        mlp.gate_proj.weight[7] = mlp.up_proj.weight[7] = 5 * own / own.norm()  # type: ignore[union-attr, operator]
    texts = [f"text {i} without" for i in range(12)] + ["here a Q stands", "and Q again"] + ["nothing here"] * 5
    run = probe.top(planted, texts, at=["mlp_post@0.n6..7", "mlp_post@all.n-1"], top=2)
    rows = listed(run, "mlp_post@0.n7", "top")
    assert {row["prompt_id"] for row in rows} == {12, 13} and {row["token"] for row in rows} == {"Q"}
    for number, row in enumerate(rows):
        x = plain(planted, [texts[row["prompt_id"]]], "model.layers.0.mlp.down_proj", takes_in=True)[0]
        assert row["value"] == pytest.approx(x[row["pos"], 7], rel=1e-4) and x[1:, 7].argmax() + 1 == row["pos"], number
    assert {row["prompt_id"] for row in listed(run, "mlp_post@0.n6", "top")} != {12, 13}
    values = {row["place"]: row for row in run.scan("top_values").to_pylist()}
    last = planted.anatomy.site("mlp_post", 0).width - 1
    assert set(values) == {"mlp_post@0.n6", "mlp_post@0.n7", *(f"mlp_post@{layer}.n{last}" for layer in range(3))}
    assert values["mlp_post@0.n7"]["unit"] == 7 and values["mlp_post@0.n7"]["measure"] == "activation"
    every = np.concatenate([x[1:, 7] for x in plain(planted, texts, "model.layers.0.mlp.down_proj", takes_in=True)])
    assert values["mlp_post@0.n7"]["above_zero"] == pytest.approx((every > 0).mean())
    for wrong in ("z@1.n3", "resid_post@1.n3", "mlp_post@0.n99999"):
        with pytest.raises(ProbeError):
            probe.top(lm, texts, at=wrong)


def test_an_expert_is_its_logit() -> None:
    own, texts = probe.load("tiny:mixtral"), TEXTS[:3]
    run = probe.top(own, texts, at=["router@1.e0..1"], top=2)
    (means,) = probe.means(own, texts, at="router@1").scan("means").to_pylist()
    found = {row["place"]: row["mean"] for row in run.scan("top_values").to_pylist()}
    assert found == {f"router@1.e{unit}": pytest.approx(means["mean"][unit], rel=1e-5) for unit in (0, 1)}
    assert found["router@1.e0"] != found["router@1.e1"]


@pytest.mark.parametrize("verb", ["top", "means"])
def test_panels_show_the_rows_of_the_tables(lm: LanguageModel, verb: str) -> None:
    run = getattr(probe, verb)(lm, TEXTS, at=["resid_post@1", "z@0"])
    shown = panels(run, int(run.prompts["prompt_id"][0]))
    for panel in shown.values():
        if panel.table != "prompts" and not (panel.table == "means" and panel.name != "means"):
            same_as_the_table(run, panel)
    if verb == "top":
        texts = shown["top"].frame
        assert (texts["text"].str.count("⟦") == 1).all() and texts["list"].tolist()[0] == "largest"
        assert sum(isinstance(panel, Bars) for panel in shown.values()) == 1 + 4
    else:
        assert len(shown["means"].frame) == 1 + 4


def test_the_texts_of_a_planted_direction_come_first(lm: LanguageModel, tmp_path: Path) -> None:
    file = embedding_of(lm, "Q", tmp_path)
    texts = [f"text {i} without" for i in range(20)] + ["here a Q stands", "and Q again"] + ["nothing here"] * 5
    run = probe.top(lm, texts, at=f"direction:{file}", top=3)
    rows = listed(run, f"direction:{file}", "top")
    assert [(row["prompt_id"], row["token"]) for row in rows[:2]] == [(20, "Q"), (21, "Q")]  # equal, by the order of the texts
    assert rows[1]["value"] > rows[2]["value"] + 1e-3 and rows[0]["before"].endswith("here a ")
    random = [row["value"] for row in listed(run, f"direction:{file}", "random")]
    assert max(random) < rows[0]["value"]
    (about,) = run.scan("top_values").to_pylist()
    assert (about["site"], about["layer"], about["measure"]) == ("resid_pre", 0, "projection")
    unit = embedding_of(lm, "Q", tmp_path)
    again = probe.top(lm, texts, at="resid_pre@0", project=unit, top=3)
    assert [row["value"] for row in listed(again, "resid_pre@0", "top")] == [row["value"] for row in rows]
    for wrong in ({"at": f"direction:{file}", "project": file}, {"at": "direction:none.safetensors"}, {"at": "pattern@1"}):
        with pytest.raises(ProbeError):
            probe.top(lm, texts, **wrong)
    with pytest.raises(BadPlace, match="16"):
        probe.top(lm, texts, at="z@1.0", project=file)
    with pytest.raises(BadPlace, match="positions"):
        probe.top(lm, texts, at="z@1.0:last")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(windows, "LEAST", 60)
    yield


VERBS = {"top": {"at": ["z@1", "resid_post@2"], "top": 2}, "means": {"at": ["z@1", "resid_post@2"]}}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(lm: LanguageModel, verb: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{text} {i}", "id": f"row{i}"}) + "\n" for i, text in enumerate(TEXTS)))
    run, seen = getattr(probe, verb), list[int]()
    alone = run(lm, file, out=tmp_path / "alone", **VERBS[verb])

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lm, file, out=tmp_path / "r", progress=stop, **VERBS[verb])
    assert probe.store.describe(tmp_path / "r.partial").units > 0
    again = list[int]()
    resumed = run(
        lm, file, out=tmp_path / "r", resume=True, progress=lambda what, done, total: again.append(done), **VERBS[verb]
    )
    assert 0 < len(again) < len(seen) + 3 and rows_of(resumed) == rows_of(alone) and resumed.summary == alone.summary
    assert probe.store.check(tmp_path / "r") == [] and "unfinished" not in resumed.tables
    assert not (tmp_path / "r" / "unfinished").exists()
    if verb == "top":
        assert {row["row_id"] for row in rows_of(resumed)["top"]} <= {f"row{i}" for i in range(len(TEXTS))}
        assert {row["id"] for row in rows_of(resumed)["prompts"]} >= {row["row_id"] for row in rows_of(resumed)["top"]}
    assert rows_of(probe.replay(lm, alone)) == rows_of(alone)
    with pytest.raises(RunError, match=r"texts|arguments"):
        run(lm, [*TEXTS, "more"], out=tmp_path / "r", resume=True, **VERBS[verb])


@pytest.mark.usefixtures("small_parts")
def test_few_parts_are_made_of_a_large_file(lm: LanguageModel) -> None:
    corpus = windows.surveyed(lm, TEXTS * 20, CorpusMeans(TEXTS, at=["z@1"]))
    assert corpus.seen.tokens > 60 * 40
    for most in (3, 40):
        parts = list(corpus.parts(most))
        assert len(parts) <= most and sum(len(one.ids) for part in parts for one in corpus.read(part)) == corpus.seen.tokens


@pytest.mark.usefixtures("small_parts")
def test_a_text_that_is_in_many_parts_is_encoded_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = windows.surveyed(lm, ["abc " * 200, "short"], CorpusMeans(["x"], at=["z@1"], window=32))
    encode, encoded = type(lm).encode, list[str]()
    monkeypatch.setattr(type(lm), "encode", lambda lm, text: encoded.append(text) or encode(lm, text))
    parts = list(corpus.parts())
    assert len(parts) > 5 and not encoded, "where parts begin and end is known by lengths"
    read = [one for part in parts for one in corpus.read(part)]
    assert encoded == ["abc " * 200, "short"]
    assert read == [one for prompt in corpus.prompts for one in corpus.windows_of(prompt)[1]]
    assert sum(one.counted for one in read) == sum(part.counted for part in parts) == corpus.seen.counted


def test_what_is_not_finite_is_an_error_row_and_left_out(lm: LanguageModel) -> None:
    broken = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name="broken")
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[lm.ids_of("X")[0]] = float("nan")
    good = [text for text in TEXTS if text]
    texts = [*good[:3], "an X here", *good[3:]]
    for verb, at in (("top", ["resid_post@1", "z@0"]), ("means", ["resid_post@1", "z@0"])):
        run = getattr(probe, verb)(broken, texts, at=at)
        plain_run = getattr(probe, verb)(lm, good, at=at)
        (row,) = [row for row in run.scan("prompts").to_pylist() if row["error"]]
        assert row["prompt_id"] == 3 and "not finite" in row["error"]
        assert (run.summary["errors"], run.summary["prompts"]) == (1, len(texts))
        name = "top_values" if verb == "top" else "means"
        assert close(rows_of(run)[name], rows_of(plain_run)[name])
        with pytest.raises(NonFinite):
            getattr(probe, verb)(broken, ["X", "an X"], at=at)


def test_files_that_hold_little_or_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("\n\n")
    with pytest.raises(BadPrompt, match="no prompt in"):
        probe.top(lm, empty, at="z@1")
    with pytest.raises(BadOption, match="no text has a token after the first 9"):
        probe.means(lm, ["a", "b"], at="z@1", skip=9)
    short.write_text("x\n日\n")
    run = probe.top(lm, short, at="resid_post@0", top=1, context=3)
    assert run.summary["counted"] == 4  # x, and the three bytes of one character
    half = probe.top(lm, ["日"], at="resid_post@0", top=1, context=0)
    row = listed(half, "resid_post@0", "top")[0]
    assert row["token"] == ("<0xE6>", "<0x97>", "<0xA5>")[row["pos"] - 1] and row["before"] == row["after"] == ""
    both = probe.means(lm, [short, short], at="z@1")
    once = probe.means(lm, short, at="z@1")
    assert [row["n"] for row in rows_of(both)["means"]] == [2 * row["n"] for row in rows_of(once)["means"]]
    shown = probe.top(lm, [short, short], at="z@1.0", top=9).scan("prompts").to_pylist()
    assert [(row["prompt_id"], row["source"], row["source_row"]) for row in shown] == [(i, str(short), i % 2) for i in range(4)]
    with pytest.raises(BadOption, match="at which place"):
        probe.top(lm, short)
    many = probe.means(lm, ["a b"] * 101, at="z@1")
    with pytest.raises(RunError, match="101 texts"):
        probe.replay(lm, many)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "falcon", "phi3", "mamba", "gpt_oss"])
def test_blocks_above_are_left_out_and_what_is_read_is_the_same(family: str) -> None:
    """What is read below is equal bit for bit, the last block's parts do not run, and the model is as it was."""
    own = probe.load(f"tiny:{family}")
    asked, ids = cells(own, "resid_post@0,resid_pre@0,embed"), torch.randint(3, 60, (2, 21))
    before, after = MemorySink(), MemorySink()
    read(own, ids, [21, 17], cells=asked, sink=before)
    observe(own, ids, [21, 17], cells=asked, sink=MemorySink())  # may try what can be left out
    ran = Counter[str]()
    hooks = [
        part.register_forward_hook(lambda *_, number=number: ran.update([str(number)]))
        for number, layer in enumerate(own.anatomy.layers)
        for part in list(own.model.get_submodule(layer.block).children())[:1]
    ]
    observe(own, ids, [21, 17], cells=asked, sink=after)
    for hook in hooks:
        hook.remove()
    assert before.activations.keys() == after.activations.keys() and len(after.activations) == 3
    assert all(torch.equal(value, after.activations[key]) for key, value in before.activations.items())
    assert ran == {"0": 1}
    assert not any("forward" in vars(module) or module._forward_hooks for module in own.model.modules())


def test_moments_of_parts_are_those_of_all() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(1e8, [1.0, 1e-3, 50.0], (1000, 3))  # a sum of squares would lose the second's variance
    found = Moments.nothing(3)
    for part in np.split(values, [1, 10, 400, 990]):
        found.merge(Moments.restored(Moments.of(part).arrays("x"), "x"))
    assert found.n == 1000
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.variance, values.var(0), rtol=1e-6)
    np.testing.assert_array_equal(found.maximum, values.max(0))


def test_quantiles_of_counts_are_within_one_percent() -> None:
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.normal(0, 1, 5000), -draw.lognormal(2, 3, 500), np.zeros(100), draw.lognormal(0, 4, 500)])
    assert (np.diff(bins_of(np.sort(values))) >= 0).all() and (bins_of(np.asarray([-1e30, 1e30])) == [0, BINS - 1]).all()
    found = ValueCounts.nothing(2)
    for part in np.array_split(values, 7):
        own = ValueCounts.nothing(2)
        own.add(1, part)
        arrays = own.arrays()
        found.merge(ValueCounts.restored(2, arrays["place"], arrays["bin"], arrays["count"]))
    shares = (0.001, 0.05, 0.3, 0.5, 0.77, 0.999, 1.0)
    expected = np.quantile(values, shares, method="inverted_cdf")
    np.testing.assert_allclose(found.quantiles(1, shares, values.min(), values.max()), expected, rtol=0.01, atol=1e-7)
    edges, counts = found.histogram(1, 32, values.min(), values.max())
    assert counts.sum() == len(values) == found.counts[1].sum() and len(edges) == 33 and not found.counts[0].any()


@pytest.mark.slow
def test_kill_9_at_random_moments_and_resume(shell, tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    lines = ("".join(draw.choice(list("abcdefgh ijklmn"), 300)) for _ in range(220))
    (tmp_path / "t.txt").write_text("\n".join(lines))
    words = ("top", "t.txt", "--at", "z@all", "--at", "resid_post@2", "--model", "tiny:llama", "--quiet")
    assert killed(tmp_path, words, times=2, within=1.0, seed=1) == 2
    whole_again(shell, words, tmp_path)


def test_on_the_command_line(shell, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a Q", "id": "x7"}\n{"other": 1}\n{"prompt": "words here"}\n')
    words = ("t.jsonl", "--at", "resid_post@1", "--model", "tiny:llama", "--top", "1")
    done = shell("top", *words, "--out", "r")
    assert done.returncode == 3 and "1 of 3 texts could not be read" in done.stderr
    assert "⟦" in done.stdout and "run: r" in done.stdout and "the Euclidean norm" in done.stdout
    planned = json.loads(shell("top", *words, "--dry-run", "--json").stdout)
    assert planned["texts"] == 3 and planned["cannot_be_read"] == 1 and planned["tables"]["top"]["rows"] == 3
    both = shell("means", "-", "t.jsonl", "--at", "z@1", "--model", "tiny:llama", "--json", stdin="one line\nand two\n")
    found = json.loads(both.stdout)["summary"]
    assert found["prompts"] == 5 and found["errors"] == 1 and len(found["means"]) == 4
    assert shell("means", "none.txt", "--at", "z@1", "--model", "tiny:llama").returncode == 1
    assert reading.TABLE == "unfinished"
