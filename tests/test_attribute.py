"""A logit is the sum of what was written towards it; the lens is the model whose later writes are silent. Own hooks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.errors import BadEdit, BadOption, OutOfRange, RunError
from probe.store import run_of

SLOW = pytest.param("smollm2", marks=pytest.mark.slow)
FAMILIES = [
    "llama", "gpt2", "gemma2", "falcon_h1", "cohere", "gpt_neox", "mixtral", "minicpm3", "olmo2", "opt", "mamba", SLOW,
]  # fmt: skip
TEXT = "The capital of France"


@functools.lru_cache(maxsize=3)
def loaded(family: str) -> probe.LanguageModel:
    return probe.load(family if family == "smollm2" else f"tiny:{family}")


def replaced(output: Any, key: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    return tuple(value if i == key else old for i, old in enumerate(output))


@contextmanager
def silent(lm: probe.LanguageModel, layers: range) -> Iterator[None]:
    """Hooks of the test's own that make every write of these layers zero."""
    handles = []
    for layer in layers:
        for write in lm.anatomy.layers[layer].writes:
            tap = write.tap
            assert tap.side == "output"

            def hook(_: object, _args: object, output: Any, key: Any = tap.key) -> Any:
                own = output if isinstance(output, Tensor) else output[key]
                return replaced(output, key, torch.zeros_like(own))

            handles.append(lm.model.get_submodule(tap.path).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(lm: probe.LanguageModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_the_model_whose_later_writes_are_silent(family: str) -> None:
    lm = loaded(family)
    run = probe.lens(lm, TEXT, top=3)
    ids, n_layers = lm.encode(TEXT).ids, lm.anatomy.n_layers
    final = logits(lm, ids).log_softmax(-1)
    for layer in range(n_layers):
        with silent(lm, range(layer + 1, n_layers)):
            logp = logits(lm, ids).log_softmax(-1)
        rows = run.lens[run.lens["layer"] == layer].sort_values("pos")
        target = torch.tensor(rows["target_id"].to_numpy(np.int64))
        np.testing.assert_allclose(np.stack(rows["top_logprobs"]), logp.topk(3).values, atol=1e-4)
        np.testing.assert_allclose(rows["target_logprob"], logp.gather(1, target[:, None])[:, 0], atol=2e-4)
        np.testing.assert_allclose(rows["kl_to_final"], (final.exp() * (final - logp)).sum(-1), atol=2e-4)
        np.testing.assert_allclose(rows["entropy"], -(logp.exp() * logp).sum(-1), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_sum_to_the_logit(family: str) -> None:
    lm = loaded(family)
    run = probe.attribute(lm, TEXT, answer="a", against="b", position="1,last")
    ids, (a, b) = lm.encode(TEXT).ids, (lm.ids_of(text)[0] for text in "ab")
    real, cap = logits(lm, ids), getattr(lm.model.config, "final_logit_softcapping", None)
    if cap:
        real = cap * (real / cap).atanh()
    for pos in (1, len(ids) - 1):
        parts = run.attribution[run.attribution["pos"] == pos]["contribution"]
        assert abs(float(parts.sum()) - float(real[pos, a] - real[pos, b])) < 3e-5
        assert abs(float(parts.sum())) > 1e-4 and len(parts) > lm.anatomy.n_layers


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", SLOW])
def test_a_part_is_what_the_logit_loses_without_it(family: str) -> None:
    """Of the last layer's MLP and of one head: taken out by hand, with the final norm's scale held."""
    lm = loaded(family)
    run, ids = probe.attribute(lm, TEXT, answer="a"), lm.encode(TEXT).ids
    row = lm.model.lm_head.weight[lm.ids_of("a")[0]].double()
    seen: dict[str, Tensor] = {}
    norm = lm.model.get_submodule(lm.anatomy.final_norm.path)
    write = next(w for w in lm.anatomy.layers[-1].writes if w.kind == "mlp")

    def keep(name: str) -> Callable[..., None]:
        def hook(_: object, args: tuple[Tensor, ...], output: Any) -> None:
            seen[name] = (args[0] if name == "in" else output if isinstance(output, Tensor) else output[0])[0, -1].double()

        return hook

    handles = [norm.register_forward_hook(keep("in"))]
    handles.append(lm.model.get_submodule(write.tap.path).register_forward_hook(keep("mlp")))
    logits(lm, ids)
    for handle in handles:
        handle.remove()
    x, eps = seen["in"], getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
    w = norm.weight.double() + (1 if family == "gemma2" else 0)
    centred = family == "gpt2"
    spread = ((x - x.mean() if centred else x).pow(2).mean() + eps).sqrt()
    part = seen["mlp"] - seen["mlp"].mean() if centred else seen["mlp"]
    mlp = run.attribution[(run.attribution["component"] == "mlp") & (run.attribution["layer"] == lm.anatomy.n_layers - 1)]
    assert float(mlp["contribution"].iloc[0]) == pytest.approx(float((row * w * part / spread).sum()), abs=2e-5)


def test_heads_sum_to_the_attention_and_sources_to_the_heads() -> None:
    for family in ("llama", "gemma2", "falcon_h1"):
        run = probe.attribute(loaded(family), TEXT, answer="a", by_source=True, position="last")
        heads = run.attribution[run.attribution["head"] >= 0].set_index(["layer", "head"])["contribution"]
        read = run.attribution_sources.groupby(["layer", "head"])["contribution"].sum()
        assert len(heads) == len(read) > 0
        np.testing.assert_allclose(read.loc[heads.index], heads, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "falcon_h1"])
def test_without_writes_only_the_embedding_is_left(family: str) -> None:
    lm = loaded(family)
    ids = lm.encode(TEXT).ids
    seen: list[Tensor] = []
    norm = lm.model.get_submodule(lm.anatomy.final_norm.path)
    start = lm.model.get_submodule(lm.anatomy.layers[0].block)
    handles = [m.register_forward_pre_hook(lambda _, args, kw: seen.append(args[0] if args else kw["hidden_states"]),
                                           with_kwargs=True) for m in (start, norm)]  # fmt: skip
    with silent(lm, range(lm.anatomy.n_layers)):
        logits(lm, ids)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], seen[-1])


def test_an_edit_is_at_work_and_one_that_the_lens_does_not_read_is_refused() -> None:
    lm = loaded("llama")
    run = probe.lens(lm, TEXT, edit="mlp_out@2=zero", position="last", top=2)
    with torch.no_grad():
        handle = lm.model.model.layers[2].mlp.register_forward_hook(lambda *_: torch.zeros(1, len(lm.encode(TEXT).ids), 64))
        wanted = lm.model(torch.tensor([lm.encode(TEXT).ids])).logits[0, -1].double().log_softmax(-1).topk(2).values
        handle.remove()
    np.testing.assert_allclose(run.lens["top_logprobs"].iloc[-1], wanted, atol=1e-5)
    with pytest.raises(BadEdit, match="changes no layer's guess"):
        probe.lens(lm, TEXT, edit="final_norm=zero")


def test_bad_input() -> None:
    lm = loaded("llama")
    assert not any(run_of(text) for text in ("", ".", "a" * 5000, "\0", "tests", "a / b"))
    with pytest.raises(RunError, match="not a run"):
        probe.attribute(lm, "tests/")
    with pytest.raises(BadOption, match="are the same"):
        probe.attribute(lm, TEXT, answer="a", against="a")
    with pytest.raises(BadOption, match="begin with the same token"):
        probe.attribute(lm, TEXT, answer="ab", against="ac")
    with pytest.raises(BadOption, match="--answer is empty"):
        probe.attribute(lm, TEXT, answer="")
    with pytest.raises(OutOfRange, match="no position 99"):
        probe.attribute(lm, TEXT, answer="a", position="99")
    with pytest.raises(OutOfRange, match="no position 99"):
        probe.lens(lm, TEXT, position="99")
    run = probe.attribute(lm, TEXT, answer="ab", against="c")
    assert "the first, 'a', is used" in run.manifest["warnings"][0]


@pytest.mark.slow
def test_the_command_line_is_the_library(shell: Callable[..., Any], tmp_path: Path) -> None:
    lm, common = loaded("llama"), ("--model", "tiny:llama", "--no-progress", "--json")
    done = shell("attribute", TEXT, "--answer", "a", "--against", "b", *common)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"] == probe.attribute(lm, TEXT, answer="a", against="b").summary
    done = shell("lens", TEXT, "--target", "a", "--edit", "mlp_out@0=zero", *common, "--out", "kept")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"] == probe.lens(lm, TEXT, target="a", edit="mlp_out@0=zero").summary
    again = probe.lens(None, tmp_path / "kept", target="a", edit="mlp_out@0=zero")
    assert again.summary == json.loads(done.stdout)["summary"]
    shown = shell("lens", "kept", "--position", "last")
    assert shown.returncode == 0 and "settled" in shown.stdout and "\x1b" not in shown.stdout
    assert "made with edits" in shown.stderr
