"""Each head's W_Q, W_K, W_V and W_O, read off what the attention makes of single vectors. Knows no names of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.anatomy import Layer
from probe.anatomy.mixing import values_at
from probe.anatomy.tape import probe_tokens
from probe.attributing.decomposition import split
from probe.attributing.linear import Frozen, call, identity
from probe.instrument import AttentionCall, attending, device_of, in_memory
from probe.matrices.calls import StreamNorm, norm_of, recorded_calls, to_stream

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ROWS = 1024  # vectors that an attention module is given at once
LINEAR = 1e-4  # by how much a map may differ from its matrix


class HeadMaps(NamedTuple):
    """What the heads of a layer are of what its attention reads, x (d,): q = query x + query_bias, and so on; float64.

    query (head, d_head, d), key (kv head, d_head, d), value (kv head, d_value, d), out (head, d, d_value): z of a head ->
    what it adds to the stream, with the gain of a norm that comes after but not its scale. norm: what makes x of the
    stream. Query head h reads key-value head h // (heads / kv heads). `absent`: why "QK" or "OV" is not there."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    out: Tensor
    norm: Frozen
    norm_path: str | None
    scaling: float
    softcap: float | None
    absent: dict[str, str]

    def folded(self, name: str) -> Tensor:
        """query, key or value as a map of the stream before the norm, a matrix a query head: its gain and its centring are in
        it, its scale is not."""
        found = getattr(self, name) * self.norm.gain
        found = found - self.norm.centre * found.mean(-1, keepdim=True)
        return self._each(found)

    def per_head(self, name: str) -> Tensor:
        """query, key or value, or a bias of theirs, for each query head."""
        return self._each(getattr(self, name))

    def _each(self, found: Tensor) -> Tensor:
        """(kv head or head, …) -> (head, …)."""
        return found.repeat_interleave(len(self.query) // len(found), 0)


class HeadReader:
    """Reads the heads of any layer of a model. offset: the position of the query; keys are at 0."""

    def __init__(self, lm: LanguageModel, *, offset: int = 0) -> None:
        self._lm, self._model, self._anatomy = lm, lm.model, lm.anatomy
        ids = probe_tokens(self._model)
        self._calls = {at: recorded_calls(self._model, ids[:, :1], at) for at in {0, offset}}
        self._offset = offset
        taps = {layer.taps[s] for layer in self._anatomy.layers for s in ("resid_pre", "z", "attn_out") if s in layer.taps}
        self._results: dict[tuple[str, int], Tensor] = {}

        def keep(path: str, seen: AttentionCall, output: Tensor) -> None:
            self._results[path, seen.visit] = output.detach().flatten(2)

        self._seen = values_at(self._model, ids, taps, observer=keep)

    def layer(self, number: int) -> HeadMaps | str:
        """The heads of one layer, or why none can be read."""
        layer = self._anatomy.layers[number]
        if layer.attention is None:
            return self._anatomy.reason("pattern", number)
        with in_memory(self._model.get_submodule(layer.block)):
            return self._read(number, layer)

    def _read(self, number: int, layer: Layer) -> HeadMaps | str:
        try:
            maps, bad = self._projections(layer)
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            return f"its attention can't be called with single vectors: {str(error).splitlines()[0]}"
        absent = {}
        if odd := [name for name in ("query", "key") if name in bad]:
            absent["QK"] = f"its {' and '.join(odd)} are no linear map of what the attention reads (a norm of each head?)"
        if "value" in bad:
            absent["OV"] = "its values are no linear map of what the attention reads"
        out = self._out(layer)
        if isinstance(out, str):
            absent.setdefault("OV", out)
        norm = self._norm(layer)
        if norm is None:
            absent |= dict.fromkeys(("QK", "OV"), "what the attention reads is no norm of the stream")
            norm = StreamNorm(identity(1, self._anatomy.d_model), None)
        d, heads = self._anatomy.d_model, layer.n_heads
        if isinstance(out, str):
            out = torch.zeros(heads, d, maps["value"][0].shape[1]).double()
        return HeadMaps(
            *maps["query"], *maps["key"], *maps["value"], out,
            norm.norm, norm.path, self._scaling, self._softcap, absent,
        )  # fmt: skip

    def _projections(self, layer: Layer) -> tuple[dict[str, tuple[Tensor, Tensor]], set[str]]:
        """(matrix, bias) of queries, keys and values, and which of them are none."""
        d = self._anatomy.d_model
        generator = torch.Generator().manual_seed(0)
        trial = torch.randn(2, d, generator=generator)
        rows = torch.cat([torch.zeros(1, d), torch.eye(d), trial])
        keys = self._projected(layer, 0, rows)
        queries = keys if not self._offset else self._projected(layer, self._offset, rows)
        maps, bad = {}, set()
        for name, got in (("query", queries[0]), ("key", keys[1]), ("value", keys[2])):
            bias, images, real = got[0], got[1 : d + 1] - got[0], got[d + 1 :]
            made = torch.einsum("nd,dhe->nhe", trial.double(), images) + bias
            if float((made - real).norm()) > LINEAR * float(real.norm()):
                bad.add(name)
            maps[name] = (images.permute(1, 2, 0), bias)
        return maps, bad

    def _projected(self, layer: Layer, position: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, head, d_head) of rows (n, d), each alone at that position."""
        assert layer.attention is not None, "a layer without an attention call has no heads here"
        one = self._calls[position][layer.attention, layer.visit]
        like = next(one.module.parameters())
        caught: list[AttentionCall] = []

        def catch(seen: AttentionCall) -> Tensor:
            caught.append(seen)
            n, heads = seen.query.shape[:2]
            return seen.value.new_zeros(n, seen.query.shape[2], heads, seen.value.shape[-1])

        for part in rows.split(ROWS):
            given, named = one.with_rows(part[:, None].to(device_of(one.module), like.dtype))
            with torch.no_grad(), attending(self._model, attention=catch):
                one.module(*given, **named)
        self._scaling, self._softcap = caught[0].scaling, caught[0].softcap
        q, k, v = (torch.cat([getattr(one, f)[:, :, 0] for one in caught]) for f in ("query", "key", "value"))
        return q.double().cpu(), k.double().cpu(), v.double().cpu()

    def _out(self, layer: Layer) -> Tensor | str:
        """(head, d, d_value): what each head's z adds to the stream; or why that is not known."""
        write = next((one for one in layer.writes if one.kind == "attn"), None)
        if write is None or "z" not in layer.taps or "attn_out" not in layer.taps:
            return layer.absent.get("z") or layer.absent.get("attn_out") or "its heads' values were not found"
        z, value = (self._seen[layer.taps[site]][0].double().cpu() for site in ("z", "attn_out"))
        result = self._results[layer.attention or "", layer.visit][0].double().cpu()
        if result.shape != z.shape or not torch.equal(result, z):
            return "something (a gate) changes the heads' values before W_O"
        found = split(self._model, layer, write, z, value)
        if isinstance(found, str):
            return found
        basis = torch.eye(z.shape[1], dtype=torch.float64)
        projection = self._model.get_submodule(layer.taps["z"].path)
        images = call(projection, basis) - call(projection, torch.zeros(1, z.shape[1]))
        images = to_stream(self._model, write, found.after, images)
        return images.unflatten(0, (layer.n_heads, -1)).transpose(1, 2)

    def _norm(self, layer: Layer) -> StreamNorm | None:
        """What makes the attention's input of the stream; None where it is no norm."""
        tap = layer.taps.get("resid_pre")
        if tap is None or layer.attention is None:
            return None
        given = self._calls[0][layer.attention, layer.visit].given
        return norm_of(self._lm, self._calls[0], given, [tap], [self._seen[tap][0]])
