"""What is known about a loaded model, as rows and words for the terminal. Knows no commands."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import typer

from probe.sites.positions import listed

if TYPE_CHECKING:
    from probe.anatomy import Anatomy, Tap
    from probe.language_model import LanguageModel


def site_rows(lm: LanguageModel, text: str | None) -> list[dict[str, Any]]:
    """Site, layer, shape and float32 bytes a token of what a place matches; of all that the model has if None."""
    from probe.sites import SITES, parse_places

    anatomy = lm.anatomy
    wanted: list[tuple[str, int, tuple[int, ...] | None, tuple[int, ...] | None]] = []
    if text is None:
        for name, site in SITES.items():
            layers = range(anatomy.n_layers) if site.per_layer else (-1,)
            wanted += [(name, layer, None, None) for layer in layers if anatomy.has(name, layer)]
    else:
        cells = anatomy.cells(parse_places(text))
        wanted += [(cell.site, cell.layer, cell.heads, cell.units) for cell in cells]
    rows = []
    for name, layer, heads, units in wanted:
        found = anatomy.site(name, layer)
        count = len(heads) if heads is not None else found.n_heads
        width = found.width if units is None else len(units)
        sizes = {"head": count, "kv_head": count, "expert": width}
        sizes |= {axis: width for axis in found.site.axes if axis.startswith("d_")}
        shape = [sizes.get(axis, axis) for axis in found.site.axes]
        values = (count or 1) * width  # of patterns, how many depends on the text
        rows.append({"site": name, "layer": layer, "shape": f"({', '.join(map(str, shape))})", "bytes_per_token": 4 * values})
    return rows


def sums(anatomy: Anatomy) -> list[dict[str, str]]:
    """How the sites of a layer add up to the stream, or why they don't, layers that are alike together."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for i, layer in enumerate(anatomy.layers):
        grouped[layer.sum or f"no sum of sites: {layer.equation}"].append(i)
    return [{"layers": listed(where), "equation": text} for text, where in grouped.items()]


def facts(lm: LanguageModel) -> dict[str, Any]:
    """Identity, sizes and tokenizer of a model, and in brief what was found in it; heads are the first layer's."""
    from probe.instrument import held_bytes

    anatomy, tokenizer, first = lm.anatomy, lm.tokenizer, lm.anatomy.layers[:1]
    return {
        **lm.identity,
        "weights_bytes": held_bytes(lm.model),
        "layers": anatomy.n_layers,
        "d_model": anatomy.d_model,
        "d_vocab": anatomy.d_vocab,
        "heads": first[0].n_heads if first else None,
        "kv_heads": first[0].n_kv_heads if first else None,
        "d_head": first[0].d_head if first else None,
        "context_length": lm.context_length,
        "tokenizer": type(tokenizer).__name__,
        "bos": tokenizer.bos_token,
        "eos": [lm.token_text(i) for i in sorted(lm.eos_ids)],
        "causal": anatomy.causal,
        "residual_error": anatomy.residual_error,
        "readout_exact": anatomy.readout_exact,
        "absent": sorted(anatomy.absent),
    }


def show_facts(found: dict[str, Any]) -> None:
    """One fact a line."""
    width = max(map(len, found))
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        typer.echo(f"{key.replace('_', ' '):<{width}}  {'–' if value in (None, '') else value}")


def show_sites(rows: list[dict[str, Any]], equations: list[dict[str, str]]) -> None:
    """Rows of `site_rows`, layers that are alike together, and what `sums` says."""
    from .terminal import show_table

    grouped: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for row in rows:
        grouped[row["site"], row["shape"], row["bytes_per_token"]].append(row["layer"])
    show_table(
        ("site", "layers", "shape", "bytes a token and layer"),
        [
            (site, listed(layer for layer in where if layer >= 0), shape, f"{size:,}" if size else "4 a key and head")
            for (site, shape, size), where in grouped.items()
        ],
    )
    typer.echo(f"\nall of these but patterns: {sum(row['bytes_per_token'] for row in rows):,} bytes a token, as float32")
    for found in equations:
        typer.echo(f"layers {found['layers']}: {found['equation']}")


def show_anatomy(anatomy: Anatomy) -> None:
    """The equation of each layer, where each site is, the readout, and what was not found and why."""
    from probe.sites import sites_of

    from .terminal import show_table

    layers = list(enumerate(anatomy.layers))
    show_table(
        ("layer", "block", "equation", "error"),
        [(str(i), layer.block, layer.equation, f"{layer.error:.1e}") for i, layer in layers],
    )
    typer.echo("")
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, layer in layers:
        for site, tap in layer.taps.items():
            found[site, _tap(tap, layer.block)].append(i)
        if layer.attention:
            called = " ".join(sites_of("call"))
            found[called, f"attention call of {_inside(layer.attention, layer.block)}"].append(i)
    rows = [(site, listed(where), text) for (site, text), where in found.items()]
    rows += [(site, "", _tap(tap, None)) for site, tap in anatomy.taps.items()]
    show_table(("site", "layers", "found at"), rows)
    readout = anatomy.readout
    exact = "exact" if anatomy.readout_exact else "not exact"
    typer.echo(
        f"\nlogits: {anatomy.head or 'head not found'}, scale {readout.scale:g}, cap {readout.cap}, {exact} "
        f"(error {anatomy.readout_error:.1e})"
    )
    typer.echo(f"residual error: {anatomy.residual_error:.1e}")
    typer.echo(f"attention: {'causal' if anatomy.causal else 'not causal'}")
    _show_absent(anatomy)


def _show_absent(anatomy: Anatomy) -> None:
    from .terminal import show_table

    missing: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, layer in enumerate(anatomy.layers):
        for site, why in layer.absent.items():
            missing[site, why].append(i)
    rows = [(site, "", why) for site, why in anatomy.absent.items()]
    rows += [(site, listed(where), why) for (site, why), where in missing.items()]
    if rows:
        typer.echo("\nnot found")
        show_table(("site", "layers", "why"), rows)


def _tap(tap: Tap, block: str | None) -> str:
    key = "" if tap.key == 0 else f"[{tap.key!r}]"
    times = "" if tap.times == 1 else f"{tap.times:.4g} times "
    less = "" if tap.less is None else f" without {times}the {_tap(tap.less, block)}"
    return f"{tap.side} of {_inside(tap.path, block)}{key}{less}"


def _inside(path: str, block: str | None) -> str:
    """A module's path as seen from its block: the same text for every layer."""
    if path == block:
        return "the block"
    return path.removeprefix(f"{block}.") or "the model"
