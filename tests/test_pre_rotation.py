"""Queries and keys before rotation: found by their equation in families that differ, read and changed as plain hooks do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import probe
from probe.anatomy import Anatomy, verify
from probe.interventions import Scale, applying, cells
from probe.laws import TEXT, reading

IDS = [256, *TEXT.encode()][:12]
# separate, normed, heads before positions, fused, fused head by head, fewer key heads, channels in another order
FAMILIES = {
    "llama": ("q_proj", "k_proj"), "qwen3": ("q_norm", "k_norm"), "gemma3_text": ("q_norm", "k_norm"),
    "olmo2": ("q_norm", "k_norm"), "phi3": ("qkv_proj", "qkv_proj"), "gpt_neox": ("query_key_value", "query_key_value"),
    "gemma2": ("q_proj", "k_proj"), "gpt_oss": ("q_proj", "k_proj"), "gpt2": ("c_attn", "c_attn"),
}  # fmt: skip


def heads_of(lm: Any, seen: dict[Any, Tensor], site: str, layer: int = 1) -> Tensor:
    """(pos, head, d) of one read."""
    return torch.stack([seen[site, layer, h][0] for h in range(lm.anatomy.n_heads(site, layer))], dim=1)


def seen_by(lm: Any, edits: Any = ()) -> dict[Any, Tensor]:
    with torch.no_grad(), applying(lm, list(edits), ids=IDS):
        return reading.captured(lm, [IDS], reading.everything(lm))[0].activations


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotation_makes_queries_and_keys_of_them(family: str) -> None:
    """Equal at position 0, as long at every other; halved, they halve queries and keys and all that follows is the same."""
    lm = probe.load(f"tiny:{family}")
    before = seen_by(lm)
    for site, after, module in zip(("q_pre", "k_pre"), ("q", "k"), FAMILIES[family], strict=True):
        assert lm.anatomy.tap(site, 1).path.endswith(f".{module}")
        given, rotated = heads_of(lm, before, site), heads_of(lm, before, after)
        if family == "gpt_oss":
            given = given * lm.model.get_submodule("model.rotary_emb").attention_scaling  # YaRN's, of cosines and sines
        torch.testing.assert_close(given[0], rotated[0])
        torch.testing.assert_close(given.norm(dim=-1), rotated.norm(dim=-1))
        moved = float((given - rotated).abs().max())
        assert moved == 0 if family == "gpt2" else moved > 0.1
        for head in ("", ".1"):
            one, other = (seen_by(lm, [Scale(cells(lm, f"{name}@1{head}:3..")[0], 0.5)]) for name in (site, after))
            assert float((one["logits", -1, None] - before["logits", -1, None]).abs().max()) > 1e-4
            torch.testing.assert_close(one["logits", -1, None], other["logits", -1, None], rtol=1e-5, atol=1e-5)


def test_they_are_what_the_projections_give_and_a_change_is_a_plain_hook(tmp_path: Any) -> None:
    """Fused and interleaved: head 2's keys are values 2 * 48 + 16 to 2 * 48 + 31 of what `query_key_value` gives."""
    lm = probe.load("tiny:gpt_neox")
    module = lm.model.get_submodule(lm.anatomy.tap("k_pre", 1).path)
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, output: kept.append(output.clone()))
    reading.plain(lm, IDS)
    handle.remove()
    torch.testing.assert_close(seen_by(lm)["k_pre", 1, 2][0], kept[0][0, :, 112:128], rtol=0, atol=0)

    def halve(_m: Any, _i: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[:, 4:, 112:128] *= 0.5
        return new

    handle = module.register_forward_hook(halve)
    wanted = reading.plain(lm, IDS)
    handle.remove()
    with torch.no_grad(), applying(lm, [Scale(cells(lm, "k_pre@1.2:4..")[0], 0.5)], ids=IDS):
        assert torch.equal(reading.plain(lm, IDS), wanted)
    run = probe.patch(
        lm, clean="abcdef", corrupt="abXdef", answer="a", against="b", sites="q_pre@1", method="attribution", out=tmp_path / "r"
    )
    assert set(run.table("patches").site) == {"q_pre"}


def test_where_they_are_is_kept_and_checked() -> None:
    lm = probe.load("tiny:phi3")
    anatomy = lm.anatomy
    assert Anatomy.from_dict(anatomy.to_dict()) == anatomy and verify(lm.model, anatomy) == []
    here = anatomy.layers[1]
    wrong = {**here.entries, "q_pre": here.entries["q_pre"]._replace(starts=tuple(reversed(here.entries["q_pre"].starts)))}
    broken = replace(anatomy, layers=(anatomy.layers[0], replace(here, entries=wrong), *anatomy.layers[2:]))
    assert verify(lm.model, broken) == ["layer 1: q is no rotation of q_pre"]


@pytest.mark.parametrize(
    ("family", "why"),
    [("deepseek_v3", "put together from several"), ("llama4_text", "normed after it"), ("mamba", "attention registry")],
)
def test_absent_with_the_reason(family: str, why: str) -> None:
    with pytest.raises(probe.ProbeError, match=why):
        probe.load(f"tiny:{family}").anatomy.tap("k_pre", 0)
