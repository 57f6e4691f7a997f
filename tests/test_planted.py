"""Planted circuits: models that do a task by known parts do it, and every method finds those parts and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

import probe
from probe.interventions import Edit, Mean, Zero, applying, cells
from probe.sites import Cell
from tests.planted import BOS, N_HEADS, PEOPLE, PLACES, WORDS, Planted, copying, facts, induction, lookup

CIRCUITS = {"induction": induction, "copying": copying, "lookup": lookup}
SOME = 0.2  # of the clean difference in logits: a part that takes more does something

every_circuit = pytest.mark.parametrize("name", CIRCUITS)


def answered(circuit: Planted, text: str) -> tuple[str, float]:
    """The top word after a text, and how far its logit is above the next one's, by the plain model."""
    with torch.no_grad():
        values, words = circuit.lm.model(circuit.ids(text)).logits[0, -1].topk(2)
    return WORDS[int(words[0])], float(values[0] - values[1])


# ---- they do what they were made for


@every_circuit
def test_clean_and_corrupt_text_are_answered(name: str) -> None:
    circuit = CIRCUITS[name]()
    for text, wanted in ((circuit.clean, circuit.answer), (circuit.corrupt, circuit.against)):
        word, margin = answered(circuit, text)
        assert word == wanted and margin > 9
    assert circuit.ids(circuit.clean).shape == circuit.ids(circuit.corrupt).shape


def test_induction_continues_any_repetition() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        order = torch.randperm(len(WORDS) - 1, generator=generator)[:12] + 1
        words = [WORDS[int(i)] for i in order]
        for at in (0, 4, 10):
            word, margin = answered(induction(), " ".join([*words, words[at]]))
            assert word == words[at + 1] and margin > 9


def test_copying_names_the_person_wherever_it_stands() -> None:
    words = ["the", "store", "and", "book", "then", "in"]
    for person in PEOPLE:
        for at in range(len(words)):
            word, margin = answered(copying(), " ".join([*words[:at], person, *words[at:]]))
            assert word == person and margin > 9


def test_lookup_knows_every_fact_and_nothing_of_others() -> None:
    assert len(set(facts().values())) == len(PLACES)
    for (person, kind), place in facts().items():
        word, margin = answered(lookup(), f"then the {person} {kind}")
        assert word == place and margin > 9
        for text in (f"then {person} the {kind}", f"then the {kind} {person}", f"then the {person} saw"):
            assert answered(lookup(), text)[1] < 2  # it needs both, and in this order


def test_the_text_is_words_with_a_token_that_begins_it() -> None:
    circuit = copying()
    assert circuit.lm.pieces(circuit.lm.encode("Mary went").ids).tokens[0] == BOS
    assert len(circuit.lm.encode("Mary went").ids) == 3


# ---- ablation


def zero(circuit: Planted, cell: Cell) -> Edit:
    return Zero(cell)


def mean(circuit: Planted, cell: Cell) -> Edit:
    """Over all positions of both texts, read with a plain hook where GPT-2 has them."""
    blocks = circuit.lm.model.transformer.h
    module = {"z": "attn.c_proj", "attn_out": "attn", "mlp_out": "mlp"}[cell.site]
    seen: list[torch.Tensor] = []

    def read(_: object, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        value = inputs[0] if cell.site == "z" else output[0] if isinstance(output, tuple) else output
        seen.append(value)

    handle = blocks[cell.layer].get_submodule(module).register_forward_hook(read)
    for text in (circuit.clean, circuit.corrupt):
        circuit.difference(circuit.ids(text))
    handle.remove()
    vector = torch.cat(seen).flatten(0, 1).mean(0)
    return Mean(cell, vector if cell.heads is None else vector.unflatten(0, (N_HEADS, -1))[list(cell.heads)])


def lost(circuit: Planted, edit: Edit) -> float:
    """How much of the clean difference in logits the edit takes: 0 nothing, 1 all."""
    ids = circuit.ids(circuit.clean)
    whole = circuit.difference(ids)
    with applying(circuit.lm, [edit], ids=ids):
        return 1 - circuit.difference(ids) / whole


@every_circuit
@pytest.mark.parametrize("ablation", [zero, mean])
def test_ablation_finds_the_planted_parts_and_no_other(name: str, ablation: Callable[[Planted, Cell], Edit]) -> None:
    circuit = CIRCUITS[name]()
    n_layers = circuit.lm.anatomy.n_layers
    found: dict[str, set[object]] = {"z": set(), "attn_out": set(), "mlp_out": set()}
    for layer in range(n_layers):
        for head in range(N_HEADS):
            (cell,) = cells(circuit.lm, f"z@{layer}.{head}")
            if lost(circuit, ablation(circuit, cell)) > SOME:
                found["z"].add((layer, head))
        for site in ("attn_out", "mlp_out"):
            (cell,) = cells(circuit.lm, f"{site}@{layer}")
            if lost(circuit, ablation(circuit, cell)) > SOME:
                found[site].add(layer)
    assert found["z"] == set(circuit.heads)
    assert found["attn_out"] == {layer for layer, _ in circuit.heads}
    assert found["mlp_out"] == set(circuit.mlps)


@every_circuit
def test_ablation_by_position_finds_where_they_work(name: str) -> None:
    """The rival's place holds nothing to lose: only the answer's is found, the first of the two that a patch finds."""
    circuit = CIRCUITS[name]()
    n = circuit.ids(circuit.clean).shape[1]
    for (layer, head), positions in circuit.heads.items():
        places = [cells(circuit.lm, f"z@{layer}.{head}:{p}")[0] for p in range(n)]
        assert [p for p in range(n) if lost(circuit, Zero(places[p])) > SOME] == [min(positions)]
    for layer, positions in circuit.mlps.items():
        places = [cells(circuit.lm, f"mlp_out@{layer}:{p}")[0] for p in range(n)]
        assert [p for p in range(n) if lost(circuit, Zero(places[p])) > SOME] == [min(positions)]


# ---- patching, attribution and paths


def swept(circuit: Planted, **what: Any) -> pd.DataFrame:
    """Cells with more than SOME of the difference between the texts."""
    run = probe.patch(
        circuit.lm, clean=circuit.clean, corrupt=circuit.corrupt, answer=circuit.answer, against=circuit.against, **what
    )
    return run.patches[run.patches["effect"].abs() > SOME]


WAYS = {
    "denoise": {"direction": "denoise"},
    "noise": {"direction": "noise"},
    "integrated": {"method": "attribution", "ig": 16, "sample": 0},
}


@every_circuit
@pytest.mark.parametrize("way", WAYS)
def test_patching_finds_the_parts_and_where_they_work(name: str, way: str) -> None:
    circuit = CIRCUITS[name]()
    found = swept(circuit, sites=["z", "mlp_out"], by="head,pos", **WAYS[way])
    heads, mlps = found[found["site"] == "z"], found[found["site"] == "mlp_out"]
    wanted = {(layer, head, p) for (layer, head), positions in circuit.heads.items() for p in positions}
    assert set(zip(heads["layer"], heads["head"], heads["pos"], strict=True)) == wanted
    wanted_mlps = {(layer, p) for layer, positions in circuit.mlps.items() for p in positions}
    assert set(zip(mlps["layer"], mlps["pos"], strict=True)) == wanted_mlps


@every_circuit
@pytest.mark.parametrize("way", WAYS)
def test_patching_finds_the_way_of_the_answer_through_the_stream(name: str, way: str) -> None:
    circuit = CIRCUITS[name]()
    found = swept(circuit, sites="resid_pre", **WAYS[way])
    wanted = {(layer, p) for layer, positions in enumerate(circuit.stream) for p in positions}
    assert set(zip(found["layer"], found["pos"], strict=True)) == wanted
    shares = [1 / len(circuit.stream[layer]) for layer in found["layer"]]
    assert found["effect"].tolist() == pytest.approx(shares, abs=0.02)


def test_one_gradient_finds_the_parts_but_for_a_saturated_softmax() -> None:
    """Where attention is all on one key its slope is nothing: the previous-token head of the induction circuit is missed
    (the fault that AtP*'s QK fix is for, Kramár et al. 2024), and integrated gradients find it."""
    for circuit in (copying(), lookup()):
        found = swept(circuit, sites=["z", "mlp_out"], by="head,pos", method="attribution", sample=0)
        assert set(zip(found["layer"], found["head"], strict=True)) == set(circuit.heads) | {(i, -1) for i in circuit.mlps}
    found = swept(induction(), sites=["z", "mlp_out"], method="attribution", sample=0)
    assert set(zip(found["layer"], found["head"], strict=True)) == {(1, 2)}


EDGES = {
    "induction": {("z@0.1", "k@1.2"), ("z@1.2", "logits"), ("embed", "v@0.1")},
    "copying": {("z@1.3", "logits"), ("embed", "v@1.3")},
    "lookup": {("z@0.2", "mlp_out@1"), ("mlp_out@1", "logits"), ("embed", "v@0.2")},
}
PATHS = [
    f"{sender}->{receiver}"
    for sender in ("embed", "z@all", "mlp_out@all")
    for receiver in ("q@all", "k@all", "v@all", "mlp_out@all", "logits")
]


@pytest.mark.slow
@every_circuit
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_path_patching_finds_the_edges_and_no_other(name: str, direction: str) -> None:
    circuit = CIRCUITS[name]()
    found: set[tuple[str, str]] = set()
    for path in PATHS:
        rows = swept(circuit, path=path, direction=direction)
        for row in rows.itertuples():
            sender = row.site if row.layer < 0 else f"{row.site}@{row.layer}" + (f".{row.head}" if row.head >= 0 else "")
            found.add((sender, row.receiver))
            assert row.effect == pytest.approx(1, abs=0.02)
    assert found == EDGES[name]


# ---- direct logit attribution


@every_circuit
def test_direct_attribution_finds_what_writes_the_answer(name: str) -> None:
    """The last part of each circuit writes the answer itself; the parts before it reach the logits through it alone."""
    circuit = CIRCUITS[name]()
    run = probe.attribute(circuit.lm, circuit.clean, answer=circuit.answer, against=circuit.against)
    parts, whole = run.attribution, circuit.difference(circuit.ids(circuit.clean))
    assert parts["contribution"].sum() == pytest.approx(whole, rel=1e-4)
    strong = parts[parts["contribution"].abs() > SOME * whole]
    found = {(row.component, row.layer, row.head) for row in strong.itertuples()}
    last = max(circuit.heads)
    assert found == ({("mlp", layer, -1) for layer in circuit.mlps} if circuit.mlps else {("attn", *last)})
    assert strong["contribution"].sum() == pytest.approx(whole, rel=0.05)
