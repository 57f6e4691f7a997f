"""Single neurons as places: the words, what is recorded of them, and every edit of them against plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import BadEdit, BadOption, BadPlace, OutOfRange, ProbeError, RunError
from probe.interventions import Add, Edit, Mean, Noise, Patch, Project, Resample, Scale, Zero, applying, cells, parse_edits
from probe.language_model import LanguageModel
from probe.requests import Trace
from probe.sites import Cell, Positions, parse_place
from probe.tracing import plan_trace

TEXT = "the cat sat on"
FAMILIES = ("gpt2", "phi3", "gemma2")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any) -> LanguageModel:
    return probe.load(f"tiny:{request.param}")


def hidden(lm: LanguageModel, ids: list[int], layer: int, edit: Callable[[Tensor], Tensor | None] = lambda x: None) -> Any:
    """(hidden layer of the MLP (pos, d_mlp), logits (pos, d_vocab)), with the input of its last matrix changed by a hook."""
    seen: list[Tensor] = []

    def hook(module: Any, args: tuple[Any, ...]) -> Any:
        seen.append(args[0].clone())
        new = edit(args[0].clone())
        return None if new is None else (new, *args[1:])

    module = lm.model.get_submodule(lm.anatomy.tap("mlp_post", layer).path)
    handle = module.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    return seen[0][0], logits


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mlp_post@1.n5:-1", "mlp_post@1.n5:last"), ("mlp_post@all.n7", "mlp_post@all.n7"), ("mlp_post@1.nall", "mlp_post@1"),
        ("mlp_post@0..1.n3..9,2.n-1", "mlp_post@0..1.n3..9,2.n-1"), ("router@3.e5", "router@3.e5"),
    ],
)  # fmt: skip
def test_a_place_names_units_by_the_first_letter_of_their_word(text: str, canonical: str) -> None:
    assert str(parse_place(text)) == canonical and parse_place(canonical) == parse_place(text)


def test_neurons_of_several_places_stand_in_cells_without_overlap(lm: LanguageModel) -> None:
    last = lm.width("mlp_post", 1) - 1
    assert [(c.layer, c.units) for c in cells(lm, "mlp_post@0..1.n3..4,1.n-1")] == [(0, (3, 4)), (1, (3, 4, last))]
    found = cells(lm, "mlp_post@1.n3,mlp_post@1.n5:-1,mlp_post@1.n3..4:0")
    assert {(cell.units, str(cell.positions)) for cell in found} == {((3,), "all"), ((4,), "0"), ((5,), "last")}
    assert cells(lm, f"mlp_post@1.n0..{last}")[0].units is None
    mixed = cells(lm, "mlp_post@1:-1,mlp_post@1.n3:0")
    assert {(str(cell.positions), len(cell.units or ())) for cell in mixed} == {("last,0", 1), ("last", last)}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("mlp_post@1.n99999", OutOfRange, "neurons are 0.."), ("mlp_post@1.12", BadPlace, "mlp_post@1.n12"),
        ("z@1.n3", BadPlace, "z@1.3"), ("resid_post@1.n3", BadPlace, "write resid_post@1"),
        ("mlp_post@1.e3", BadPlace, "mlp_post@1.n3"), ("mlp_post@1.n9..3", BadPlace, "3..9"),
        ("mlp_post@1.q3", BadPlace, "SITE[@"),
    ],
)  # fmt: skip
def test_a_wrong_neuron_is_told_with_what_is_right(lm: LanguageModel, text: str, kind: type[ProbeError], words: str) -> None:
    with pytest.raises(kind) as told:
        cells(lm, text)
    assert words in f"{told.value} {told.value.hint}"


def test_only_the_neurons_that_are_asked_for_are_recorded(family: LanguageModel) -> None:
    run = probe.trace(family, TEXT, capture=["mlp_post@1.n5:-1", "mlp_post@1.n2..3", "mlp_post@0.n4"], attention="none")
    value = hidden(family, run.tokens["token_id"].tolist(), 1)[0].numpy()
    rows = run.table("activations").query("layer == 1").sort_values("pos")
    assert [list(units) for units in rows["units"]] == [[2, 3]] * (len(value) - 1) + [[2, 3, 5]]
    assert [len(vector) for vector in rows["vector"]] == [2] * (len(value) - 1) + [3]
    np.testing.assert_array_equal(run.activation("mlp_post", 1, neuron=3), value[:, 3])
    np.testing.assert_array_equal(run.activation("mlp_post", 1, neuron=[3, 2]), value[:, [3, 2]])
    np.testing.assert_array_equal(run.activation("mlp_post", 1, neuron=5), value[-1:, 5])
    assert run.activation("mlp_post", 0).shape == (len(value), 1)
    with pytest.raises(RunError, match="different positions"):
        run.activation("mlp_post", 1)
    with pytest.raises(RunError, match="neuron 7"):
        run.activation("mlp_post", 1, neuron=7)


def test_a_whole_layer_holds_each_neuron_and_an_export_says_which(lm: LanguageModel, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from probe.store.exporting import export

    run = probe.trace(lm, TEXT, capture=["mlp_post@1:-1", "mlp_post@1.n3:0"], attention="none", out=tmp_path / "run")
    value = hidden(lm, run.tokens["token_id"].tolist(), 1)[0].numpy()
    rows = run.table("activations").sort_values("pos")
    assert [None if units is None else list(units) for units in rows["units"]] == [[3], None]
    np.testing.assert_array_equal(run.activation("mlp_post", 1, neuron=3), value[[0, -1], 3])
    file = tmp_path / "a.safetensors"
    export(run, "activations", file)
    held = load_file(file)
    np.testing.assert_array_equal(held["mlp_post.1.p0.b0.units"], [3])
    np.testing.assert_array_equal(held["mlp_post.1.p0.b0.1"], value[-1:])


def test_a_dry_run_counts_the_neurons_alone(lm: LanguageModel) -> None:
    places = ("mlp_post@1.n3..6", "mlp_post@1")
    plans = [plan_trace(lm, Trace(TEXT, capture=[place]))["tables"]["activations"] for place in places]
    n, width = plans[0]["rows"], lm.width("mlp_post", 1)
    assert plans[1]["rows"] == n and plans[1]["bytes"] - plans[0]["bytes"] == 4 * n * (width - 4)


NEURONS = [1, 4]


def expected(edit: Edit, pool: Tensor) -> Callable[[Tensor], Tensor]:
    """What each edit makes of the neurons' values (pos, 2), written down anew."""
    vector = torch.tensor([3.0, -4.0])
    unit = vector / 5
    return {
        "zero": lambda x: x * 0, "scale": lambda x: x * -2.0, "mean": lambda x: vector.expand_as(x),
        "patch": lambda x: torch.arange(2.0 * len(x)).view(-1, 2), "add": lambda x: x + 0.5 * vector,
        "project": lambda x: x - (x @ unit)[:, None] * unit, "resample": lambda x: pool.expand_as(x),
    }[edit.op]  # fmt: skip


def edits(n: int, pool: Tensor) -> list[Edit]:
    cell, vector = Cell("mlp_post", 1, None, Positions(), tuple(NEURONS)), torch.tensor([3.0, -4.0])
    values = torch.arange(2.0 * n).view(-1, 2)
    return [Zero(cell), Scale(cell, -2.0), Mean(cell, vector), Patch(cell, values), Add(cell, vector, 0.5),
            Project(cell, vector), Resample(cell, pool[None])]  # fmt: skip


def test_every_edit_of_neurons_is_what_a_hook_does_with_these_alone(family: LanguageModel) -> None:
    ids = family.encode(TEXT).ids
    pool = torch.tensor([7.0, -1.0])
    for edit in edits(len(ids), pool):
        make = expected(edit, pool)

        def change(x: Tensor, make: Callable[[Tensor], Tensor] = make) -> Tensor:
            x[0][:, NEURONS] = make(x[0][:, NEURONS])
            return x

        plain, wanted = hidden(family, ids, 1)[1], hidden(family, ids, 1, change)[1]
        with applying(family, [edit], ids=ids), torch.no_grad():
            found = family.model(torch.tensor([ids, ids])).logits
            torch.testing.assert_close(found[1], wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found[0], plain, rtol=1e-4, atol=1e-4), edit


def test_noise_of_a_neuron_is_its_own_wherever_it_is_made(lm: LanguageModel) -> None:
    """Alone, beside others, in one forward and in a decode loop: the same numbers, and no other neuron moves."""
    ids = lm.encode(TEXT).ids
    moved = []
    for units in ((4,), (1, 4)):
        edit = Noise(Cell("mlp_post", 1, None, Positions(), units), 2.0, 3)
        with applying(lm, [edit], ids=ids):
            moved.append(hidden(lm, ids, 1)[0] - torch.zeros(1))
    assert str(edit) == "mlp_post@1.n1,1.n4=noise:2.0:3"
    plain = hidden(lm, ids, 1)[0]
    alone, both = (one - plain for one in moved)
    assert torch.equal(alone[:, 4], both[:, 4]) and alone[:, 4].abs().min() > 0
    assert not alone[:, [0, 1, 2, 3, 5]].any() and not both[:, [0, 2, 3, 5]].any()


def test_texts_of_edits_read_the_neurons_that_a_run_has(lm: LanguageModel, tmp_path: Path) -> None:
    run = probe.trace(lm, TEXT, capture=["mlp_post@1.n3..5"], attention="none", out=tmp_path / "run")
    value = torch.from_numpy(run.activation("mlp_post", 1).copy())
    (mean,) = parse_edits(lm, [f"mlp_post@1.n4=mean:{tmp_path / 'run'}"])
    assert isinstance(mean, Mean)
    torch.testing.assert_close(mean.vector, value[:, 1:2].mean(0))
    (patch,) = parse_edits(lm, [f"mlp_post@1.n3..4=patch:{tmp_path / 'run'}"])
    assert isinstance(patch, Patch) and torch.equal(patch.values, value[:, :2])
    with pytest.raises(RunError, match="neuron 9"):
        parse_edits(lm, [f"mlp_post@1.n9=mean:{tmp_path / 'run'}"])
    with pytest.raises(BadEdit, match="neurons"), applying(lm, [Zero(Cell("resid_post", 1, None, Positions(), (1,)))], ids=[1]):
        pass


def test_paths_are_of_whole_layers(lm: LanguageModel) -> None:
    with pytest.raises(BadOption, match="single neurons"):
        probe.patch(lm, clean=TEXT, corrupt="the dog sat on", answer="a", against="b", path="mlp_post@1.n3->logits")


def test_means_of_single_neurons_are_those_of_the_layer_and_put_in_alone(lm: LanguageModel, tmp_path: Path) -> None:
    texts = [TEXT, "a dog ran"]
    some, whole = (
        probe.means(lm, texts, at=[place], out=tmp_path / name)
        for name, place in (("some", "mlp_post@1.n3..4,1.n7"), ("whole", "mlp_post@1"))
    )
    one, other = (run.table("means").iloc[0] for run in (some, whole))
    assert list(one["units"]) == [3, 4, 7] and other["units"] is None
    for name in ("mean", "variance", "minimum", "maximum"):
        np.testing.assert_array_equal(one[name], other[name][[3, 4, 7]])
    brief = some.summary["means"][0]
    assert brief["largest_entry"] == [3, 4, 7][int(np.abs(one["mean"]).argmax())]
    for name in ("some", "whole"):
        (edit,) = parse_edits(lm, [f"mlp_post@1.n4,1.n7=mean:{tmp_path / name}"])
        assert isinstance(edit, Mean)
        np.testing.assert_array_equal(edit.vector, other["mean"][[4, 7]])
    for place in ("mlp_post@1", "mlp_post@1.n5"):
        with pytest.raises(BadEdit, match=f"no mean of {place}$"):
            parse_edits(lm, [f"{place}=mean:{tmp_path / 'some'}"])


def test_an_edited_neuron_generates_what_a_hook_generates(lm: LanguageModel) -> None:
    place = "mlp_post@1.n4"
    run = probe.trace(lm, TEXT, generate=6, edit=[f"{place}=scale:40"], capture=[place], attention="none")
    ids, n = run.tokens["token_id"].tolist(), len(lm.encode(TEXT).ids)

    def change(x: Tensor) -> Tensor:
        x[..., 4] *= 40
        return x

    logits = hidden(lm, ids, 1, change)[1]
    assert ids[n:] == logits[n - 1 : -1].argmax(-1).tolist()
