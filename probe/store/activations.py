"""What was recorded of one site of one layer, as arrays: activations, and rows of attention patterns and scores."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe.errors import RunError
from probe.sites.positions import listed
from probe.store.reading import filtered, matrix

if TYPE_CHECKING:
    import pandas as pd


class Scannable(Protocol):
    """A run, as far as its arrays are looked up here."""

    @property
    def tables(self) -> list[str]: ...
    def scan(self, name: str, *, columns: Sequence[str] | None = None, **where: Any) -> pa.Table: ...


_ROWS_OF = {"pattern": ("attention", "weights", 0.0), "scores": ("scores", "scores", -np.inf)}


def activation(
    run: Scannable, site: str, layer: int, *, head: int | None, neuron: int | Sequence[int] | None, prompt_id: int, branch: int
) -> np.ndarray:
    """See `Run.activation`."""
    if site in _ROWS_OF:
        return _rows(run, site, head=head, where={"prompt_id": prompt_id, "branch": branch, "layer": layer})
    if neuron is not None:
        units = (neuron,) if isinstance(neuron, int) else tuple(neuron)
        _, values = vectors(run, site, layer, head=head, units=units, prompt_id=prompt_id, branch=branch)
        return values[:, 0] if isinstance(neuron, int) else values
    found = _captured_rows(run, site, layer, prompt_id=prompt_id, branch=branch)
    heads = sorted(pc.unique(found["head"]).to_pylist())
    if head is None and heads[0] >= 0:
        return _of_heads(found, heads, f"'{site}' at layer {layer}")
    return vectors(run, site, layer, head=head, prompt_id=prompt_id, branch=branch)[1]


def vectors(
    run: Scannable, site: str, layer: int, *, head: int | None = None, units: Sequence[int] | None = None,
    prompt_id: int = 0, branch: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Positions ascending, and what was captured there, (pos, width), of one head where the site has heads; of `units`, in
    their order, the positions where all of them were captured. Raises `RunError` that says what was."""
    found, what = _captured_rows(run, site, layer, prompt_id=prompt_id, branch=branch), f"'{site}' at layer {layer}"
    heads = sorted(pc.unique(found["head"]).to_pylist())
    wanted = -1 if head is None else head
    if wanted not in heads:
        listed = ", ".join(str(h) for h in heads if h >= 0) or "none: leave head out"
        raise RunError(f"{what} was not captured of head {head}", hint=f"heads: {listed}")
    return _of_head(found, wanted, what) if units is None else _of_units(found, units, what)


def _captured_rows(run: Scannable, site: str, layer: int, *, prompt_id: int, branch: int) -> pa.Table:
    if "activations" not in run.tables:
        raise RunError(f"the run holds no activations of '{site}'", hint=f"capture them: --capture {site}@{layer}")
    where = {"prompt_id": prompt_id, "branch": branch, "layer": layer, "site": site}
    found = run.scan("activations", columns=["pos", "head", "vector", "units"], **where)
    if not found.num_rows:
        raise _not_captured(run, where)
    return found


def _of_head(found: pa.Table, head: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions ascending, and (pos, width) of one head."""
    mine = filtered(found, {"head": head})
    if mine["units"].null_count < mine.num_rows:
        units = set(map(str, mine["units"].to_pylist()))
        if len(units) > 1:
            raise RunError(f"the neurons of {what} were captured at different positions", hint="give neuron=")
    return _ascending(mine["pos"].to_numpy(), matrix(mine["vector"]))


def _of_units(found: pa.Table, units: Sequence[int], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions ascending where all of `units` were captured, and (pos, unit) in their order."""
    sets: dict[tuple[int, ...] | None, list[int]] = {}
    for row, held in enumerate(found["units"].to_pylist()):
        sets.setdefault(None if held is None else tuple(held), []).append(row)
    pos, values = [], []
    for held, rows in sets.items():
        mine = found.take(rows)
        known = matrix(mine["vector"])
        at = {unit: i for i, unit in enumerate(range(known.shape[1]) if held is None else held)}
        if all(unit in at for unit in units):
            pos.append(mine["pos"].to_numpy())
            values.append(known[:, [at[unit] for unit in units]])
    if not pos:
        few = sorted({unit for held in sets for unit in held or ()})
        missing = next((unit for unit in units if unit not in few), units[0])
        raise RunError(f"{what} was not captured of neuron {missing}", hint=f"captured are {listed(few) if few else 'fewer'}")
    return _ascending(np.concatenate(pos), np.concatenate(values))


def _ascending(pos: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.all(pos[1:] > pos[:-1]):
        return pos, values
    order = np.argsort(pos, kind="stable")
    return pos[order], values[order]


def _of_heads(found: pa.Table, heads: list[int], what: str) -> np.ndarray:
    """(pos, head, width) of the heads that were captured, ascending."""
    each = [_of_head(found, head, what) for head in heads]
    if any(not np.array_equal(pos, each[0][0]) for pos, _ in each):
        raise RunError(f"the heads of {what} were captured at different positions", hint="give head=")
    return np.stack([vectors for _, vectors in each], axis=1)


def attention_row(run: Scannable, layer: int, head: int, query: int, *, prompt_id: int, branch: int) -> pd.DataFrame:
    """See `Run.attention`."""
    import pandas as pd

    if "attention" not in run.tables:
        raise RunError("the run holds no 'attention'", hint="record it with --attention full or topk:8")
    sequence = {"prompt_id": prompt_id, "branch": branch}
    tokens = run.scan("tokens", columns=["pos", "token"], **sequence).sort_by("pos")
    where = {**sequence, "layer": layer, "head": head, "query": query if query >= 0 else query + tokens.num_rows}
    (row,) = run.scan("attention", columns=["keys", "weights"], **where).to_pylist() or [None]
    if row is None:
        raise _not_captured(run, where, table="attention")
    keys = np.arange(len(row["weights"])) if row["keys"] is None else np.asarray(row["keys"], np.int64)
    texts = tokens["token"].to_numpy(zero_copy_only=False)
    found = pd.DataFrame({"key": keys, "token": texts[keys], "weight": np.asarray(row["weights"], np.float32)})
    return found.sort_values("key", ignore_index=True)


def captured(run: Scannable) -> dict[str, list[int]]:
    """Layers of each captured site, -1 where a site has none."""
    if "activations" not in run.tables:
        return {}
    keys = run.scan("activations", columns=["site", "layer"])
    keys = keys.set_column(0, "site", pc.cast(keys["site"], pa.string()))
    pairs = keys.group_by(["site", "layer"]).aggregate([]).to_pylist()
    found: dict[str, list[int]] = {}
    for pair in sorted(pairs, key=lambda p: (p["site"], p["layer"])):
        found.setdefault(pair["site"], []).append(pair["layer"])
    return found


def _rows(run: Scannable, site: str, *, head: int | None, where: dict[str, Any]) -> np.ndarray:
    """Attention rows as (query, key), float32."""
    table, values, empty = _ROWS_OF[site]
    if table not in run.tables:
        option = "--attention full" if site == "pattern" else "--capture scores"
        raise RunError(f"the run holds no '{site}'", hint=f"record it with {option}")
    if head is None:
        raise RunError(f"'{site}' needs a head", hint="give head=")
    columns = ["query", values] + (["keys"] if table == "attention" else [])
    found = run.scan(table, columns=columns, head=head, **where)
    if not found.num_rows:
        raise _not_captured(run, {**where, "head": head}, table=table)
    rows = sorted(found.to_pylist(), key=lambda row: row["query"])
    width = 1 + max(row["query"] for row in rows)
    out = np.full((len(rows), width), empty, np.float32)
    for i, row in enumerate(rows):
        keys = row.get("keys")
        out[i, slice(0, len(row[values])) if keys is None else keys] = row[values]
    return out


def _not_captured(run: Scannable, where: dict[str, Any], *, table: str = "activations") -> RunError:
    if table != "activations":
        wanted = ", ".join(f"{key} {value}" for key, value in where.items())
        return RunError(f"the run holds no '{table}' of {wanted}")
    found = captured(run)
    site, layer = where["site"], where["layer"]
    if site not in found:
        near = difflib.get_close_matches(site, found, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        return RunError(f"'{site}' was not captured", hint=f"{meant}captured: {', '.join(found)}")
    if layer not in found[site]:
        return RunError(f"'{site}' was not captured at layer {layer}", hint=f"captured at: {listed(found[site])}")
    return RunError(f"the run has no prompt {where['prompt_id']} with branch {where['branch']} in its activations")
