"""One site of one layer as an array, from a run's tables; or the error that lists what was captured."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe.errors import RunError
from probe.sites.positions import listed
from probe.store import reading

if TYPE_CHECKING:
    from probe.store.run import Run

_ROWS_OF = {"pattern": ("attention", "weights", 0.0), "scores": ("scores", "scores", -np.inf)}


def read(run: Run, site: str, layer: int, *, head: int | None, prompt_id: int, branch: int) -> np.ndarray:
    """See `Run.activation`."""
    where: dict[str, Any] = {"prompt_id": prompt_id, "branch": branch, "layer": layer}
    if site in _ROWS_OF:
        return _rows(run, site, head=head, where=where)
    if "activations" not in run.tables:
        raise RunError(f"the run holds no activations of '{site}'", hint=f"capture them: --capture {site}@{layer}")
    where = {**where, "site": site}
    found = run.scan("activations", columns=["pos", "head", "vector"], **where)
    if not found.num_rows:
        raise _not_captured(run, where)
    heads = sorted(pc.unique(found["head"]).to_pylist())
    wanted = -1 if head is None else head
    if wanted not in heads:
        listed = ", ".join(str(h) for h in heads if h >= 0) or "none: leave head out"
        raise RunError(f"'{site}' at layer {layer} needs one of its heads, not {head}", hint=f"heads: {listed}")
    if len(heads) > 1:
        found = found.filter(pc.equal(found["head"], pa.scalar(wanted, pa.int16())))
    pos = found["pos"].to_numpy()
    vectors = reading.matrix(found["vector"])
    return vectors if np.all(pos[1:] > pos[:-1]) else vectors[np.argsort(pos, kind="stable")]


def captured(run: Run) -> dict[str, list[int]]:
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


def _rows(run: Run, site: str, *, head: int | None, where: dict[str, Any]) -> np.ndarray:
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


def _not_captured(run: Run, where: dict[str, Any], *, table: str = "activations") -> RunError:
    if table != "activations":
        asked = ", ".join(f"{key} {value}" for key, value in where.items())
        return RunError(f"the run holds no '{table}' of {asked}")
    found = captured(run)
    site, layer = where["site"], where["layer"]
    if site not in found:
        near = difflib.get_close_matches(site, found, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        return RunError(f"'{site}' was not captured", hint=f"{meant}captured: {', '.join(found)}")
    if layer not in found[site]:
        return RunError(f"'{site}' was not captured at layer {layer}", hint=f"captured at: {listed(found[site])}")
    return RunError(f"the run has no prompt {where['prompt_id']} with branch {where['branch']} in its activations")
