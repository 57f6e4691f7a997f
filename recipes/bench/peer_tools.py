"""One work done by each of several libraries: residuals, a sweep, a lens, a continuation; on their own copies of one model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import probe


class Tool(Protocol):
    """What each of them is asked for; on a text of token ids (1, pos)."""

    name: str

    def residuals(self, ids: Tensor) -> Tensor:
        """(layer, pos, d_model): the stream after each block."""

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        """(layer, pos): logit of answer less that of against at the end of `corrupt`, with the stream before each block at
        each position from `clean`."""

    def lens(self, ids: Tensor) -> Tensor | list[list[str]]:
        """(layer, pos): the token that each layer's stream says, through the model's own norm and head."""

    def generate(self, ids: Tensor, n: int) -> list[int]:
        """The ids of n tokens, greedy."""


class Notebook:
    """transformers, with one hook of PyTorch a block: what a notebook does."""

    name = "plain transformers"

    def __init__(self, model: Any) -> None:
        self.model = model

    def residuals(self, ids: Tensor) -> Tensor:
        kept: list[Tensor] = []
        with _hooked(self._blocks, lambda _, output: kept.append(output)):
            self.model(ids)
        return torch.cat(kept)

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        given = [self.model.model.embed_tokens(clean)[0], *self.residuals(clean)[:-1]]
        found = torch.empty(len(self._blocks), corrupt.shape[1])
        for layer, pos in _cells(found):

            def patch(_: nn.Module, args: tuple[Tensor, ...], to: Tensor = given[layer][pos], at: int = pos) -> Any:
                changed = args[0].clone()
                changed[0, at] = to
                return changed, *args[1:]

            handle = self._blocks[layer].register_forward_pre_hook(patch)
            logits = self.model(corrupt, logits_to_keep=1).logits[0, -1]
            handle.remove()
            found[layer, pos] = logits[answer] - logits[against]
        return found

    def lens(self, ids: Tensor) -> Tensor:
        return torch.stack([_said(self.model, stream) for stream in self.residuals(ids)])

    def generate(self, ids: Tensor, n: int) -> list[int]:
        return _written(self.model.generate(ids, **_greedy(n)), ids)

    @property
    def _blocks(self) -> Any:
        return self.model.model.layers


class Ours:
    """This program, through its public functions, runs in memory."""

    name = "probe"

    def __init__(self, lm: probe.LanguageModel) -> None:
        self.lm = lm

    def residuals(self, ids: Tensor) -> Tensor:
        run = probe.trace(self.lm, self._text(ids), capture="resid_post@all", attention="none", top=0)
        return torch.tensor(np.stack([run.activation("resid_post", i) for i in range(self.lm.anatomy.n_layers)]))

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        words = [self.lm.tokenizer.decode([one]) for one in (answer, against)]
        run = probe.patch(self.lm, clean=self._text(clean), corrupt=self._text(corrupt), answer=words[0], against=words[1])
        return torch.tensor(run.patches.pivot(index="layer", columns="pos", values="logit_diff").to_numpy())

    def lens(self, ids: Tensor) -> Tensor:
        found = probe.lens(self.lm, self._text(ids), top=1).lens.sort_values(["layer", "pos"])
        said = torch.tensor([ids[0] for ids in found.top_ids]).reshape(-1, ids.shape[1])
        return said[-self.lm.anatomy.n_layers :]

    def generate(self, ids: Tensor, n: int) -> list[int]:
        run = probe.trace(self.lm, self._text(ids), generate=n, attention="none", top=0)
        return [int(one) for one in run.tokens.token_id[ids.shape[1] :]]

    def _text(self, ids: Tensor) -> str:
        return self.lm.pieces(ids[0].tolist()).text


class TransformerLens:
    """Its bridge onto transformers, without compatibility mode: the same numbers."""

    name = "TransformerLens"

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        from transformer_lens import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(str(folder), hf_model=model, tokenizer=tokenizer, device="cpu")

    def residuals(self, ids: Tensor) -> Tensor:
        _, cache = self.bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_post"))
        return torch.cat([cache["resid_post", i] for i in range(self.bridge.cfg.n_layers)])

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        from transformer_lens.patching import get_act_patch_resid_pre

        _, cache = self.bridge.run_with_cache(clean)
        return get_act_patch_resid_pre(
            self.bridge, corrupt, cache, lambda logits: logits[0, -1, answer] - logits[0, -1, against]
        )

    def lens(self, ids: Tensor) -> Tensor:
        streams = self.residuals(ids)
        return torch.stack([self.bridge.unembed(self.bridge.ln_final(one[None])).argmax(-1)[0] for one in streams])

    def generate(self, ids: Tensor, n: int) -> list[int]:
        out = self.bridge.generate(
            ids, max_new_tokens=n, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
        )
        return _written(out, ids)


class NNsight:
    """One trace a forward, as its documentation writes them."""

    name = "nnsight"

    def __init__(self, folder: Path, plain: Any) -> None:
        from nnsight import TransformersModel

        self.plain = plain
        self.model = TransformersModel(str(folder), task="text-generation", dispatch=True, dtype=plain.dtype)

    def residuals(self, ids: Tensor) -> Tensor:
        with self.model.trace(ids):
            kept = [block.output.save() for block in self.model.model.layers].save()  # type: ignore[attr-defined]
        return torch.cat(list(kept))

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        given = [self.plain.model.embed_tokens(clean)[0], *self.residuals(clean)[:-1]]
        found = torch.empty(len(given), corrupt.shape[1])
        for layer, pos in _cells(found):
            with self.model.trace(corrupt):
                self.model.model.layers[layer].input[0, pos] = given[layer][pos]
                logits = self.model.output.logits[0, -1].save()
            found[layer, pos] = logits[answer] - logits[against]
        return found

    def lens(self, ids: Tensor) -> Tensor:
        return torch.stack([_said(self.plain, stream) for stream in self.residuals(ids)])

    def generate(self, ids: Tensor, n: int) -> list[int]:
        with self.model.generate(ids, **_greedy(n)) as tracer:
            out = tracer.result.save()
        return _written(out, ids)


class Interpkit:
    """Its operations, what they print thrown away."""

    name = "interpkit"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        import interpkit

        self.model, self.n_layers = interpkit.load(model, tokenizer=tokenizer), len(model.model.layers)

    def residuals(self, ids: Tensor) -> Tensor:
        names = [f"model.layers.{i}" for i in range(self.n_layers)]
        with contextlib.redirect_stdout(io.StringIO()):
            kept = self.model.activations(ids, at=names)
        return torch.cat([kept[name] for name in names])

    def sweep(self, clean: Tensor, corrupt: Tensor, answer: int, against: int) -> Tensor:
        """It patches what a module writes, so that before block i is after block i - 1."""
        found = torch.empty(self.n_layers, corrupt.shape[1])
        for layer, pos in _cells(found):
            at = f"model.layers.{layer - 1}" if layer else "model.embed_tokens"
            with contextlib.redirect_stdout(io.StringIO()):
                logits = self.model.patch(clean, corrupt, at=at, positions=[pos])["patched_logits"][0, -1]
            found[layer, pos] = logits[answer] - logits[against]
        return found

    def lens(self, ids: Tensor) -> list[list[str]]:
        """It says texts, not ids."""
        with contextlib.redirect_stdout(io.StringIO()):
            found = self.model.lens(ids)
        return [[one["top1_token"] for one in layer["positions"]] for layer in found]

    def generate(self, ids: Tensor, n: int) -> list[int]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = self.model.generate({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, max_new_tokens=n)
        return _written(found["output_ids"], ids)


@contextlib.contextmanager
def _hooked(modules: Any, keep: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    handles = [module.register_forward_hook(lambda one, _, output: keep(one, output) and None) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cells(table: Tensor) -> Iterator[tuple[int, int]]:
    """(layer, pos) of every cell."""
    return product(range(table.shape[0]), range(table.shape[1]))


def _said(model: Any, stream: Tensor) -> Tensor:
    """(pos,) from (pos, d_model)."""
    return model.lm_head(model.model.norm(stream)).argmax(-1)


def _greedy(n: int) -> dict[str, Any]:
    return {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}


def _written(out: Tensor, ids: Tensor) -> list[int]:
    return out[0, ids.shape[1] :].tolist()
