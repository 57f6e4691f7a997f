"""A site that is added as one row and one equation can be named, listed, captured, changed, patched and sent from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe.cli.main import app
from typer.testing import CliRunner

import probe
from probe.anatomy import Anatomy, roles
from probe.anatomy.inside import Inside
from probe.anatomy.roles import Finder, Roles, Trials
from probe.anatomy.tape import Port
from probe.interventions import Scale, applying, cells
from probe.laws import editing, reading
from probe.sites import SITES, Site, parse_place

ROW = Site(
    "attn_in", ("pos", "d_model"), "part", 0.1, "what the attention is given, after its norm", "attn",
    lens_name="blocks.{}.ln1.hook_normalized",
)  # fmt: skip
LAYER = 1
TEXT, OTHER = "abcdef Mary gh", "abXdef John gh"


def attn_in(inside: Inside, found: Roles, trials: Trials) -> Port | str:
    """What comes out of the first module that reads resid_pre."""
    for event in inside.events:
        if any(port.fingerprint == inside.block.before.fingerprint for port in event.inputs):
            return event.outputs[0]
    return "no module reads resid_pre"


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A model whose anatomy is found anew, with the site."""
    monkeypatch.setitem(SITES, ROW.name, ROW)
    monkeypatch.setitem(roles.FINDERS, ROW.name, Finder(attn_in))
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    return probe.load("tiny:llama")


def hooked_logits(lm: Any, ids: list[int], change: Any) -> torch.Tensor:
    """Logits (pos, d_vocab) of a forward in which a plain hook changes what the norm gives."""
    norm = lm.model.get_submodule(f"{lm.anatomy.layers[LAYER].block}.input_layernorm")
    handle = norm.register_forward_hook(lambda _m, _i, output: change(output))
    try:
        return reading.plain(lm, ids)
    finally:
        handle.remove()


def test_it_is_found_named_and_kept_in_the_cache(lm: Any) -> None:
    found = lm.anatomy.site("attn_in", LAYER)
    assert found.tap.path.endswith(f"{LAYER}.input_layernorm") and found.width == lm.width("attn_in", 0) == 64
    assert str(parse_place("blocks.1.ln1.hook_normalized")) == "attn_in@1"
    assert Anatomy.from_dict(lm.anatomy.to_dict()) == lm.anatomy
    listed = CliRunner().invoke(app, ["models", "sites", "tiny:llama"]).stdout
    assert any(line.split() == ["attn_in", "0..2", "(pos,", "64)", "256"] for line in listed.splitlines())


def test_it_is_captured_and_changed(lm: Any, tmp_path: Path) -> None:
    ids, seen = list(lm.encode(TEXT).ids), []
    hooked_logits(lm, ids, lambda value: seen.append(value[0]))
    run = probe.trace(lm, TEXT, capture="attn_in@1", out=tmp_path / "run")
    np.testing.assert_array_equal(run.activation("attn_in", LAYER), seen[0].numpy())
    (cell,) = cells(lm, "attn_in@1")
    with torch.no_grad(), applying(lm, [Scale(cell, 0.5)], ids=ids):
        halved = reading.plain(lm, ids)
    assert torch.equal(halved, hooked_logits(lm, ids, lambda value: value * 0.5))
    assert not torch.equal(halved, reading.plain(lm, ids))
    assert editing.own_patches_change_nothing(lm, ids) == 0


@pytest.mark.parametrize("more", [{}, {"method": "attribution", "sample": 0}, {"path": "attn_in@1->logits"}])
def test_it_is_patched_attributed_and_sent_from(lm: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    """Position by position the patch is what a plain hook gives; a gradient and a path have rows of the site."""
    where = {} if "path" in more else {"sites": "attn_in@1"}
    run = probe.patch(lm, clean=TEXT, corrupt=OTHER, answer="a", against="b", out=tmp_path / "run", **where, **more)
    rows = run.table("patches")
    assert set(rows.site) == {"attn_in"} and set(rows.layer) == {LAYER} and bool(np.isfinite(rows.patched).all())
    if more:
        return
    clean, corrupt = (list(lm.encode(text).ids) for text in (TEXT, OTHER))
    kept: list[torch.Tensor] = []
    hooked_logits(lm, clean, lambda value: kept.append(value.clone()))
    a, b = lm.ids_of("a")[0], lm.ids_of("b")[0]
    for row in rows.itertuples():

        def put(value: torch.Tensor, pos: int = row.pos) -> torch.Tensor:
            new = value.clone()
            new[0, pos] = kept[0][0, pos]
            return new

        logits = hooked_logits(lm, corrupt, put)[-1]
        assert row.patched == pytest.approx(float(logits[a] - logits[b]), abs=1e-5)
