"""Heat maps of a patching sweep: which places of one text, put into the other's run, carry the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from probe.reporting.panels.context import Context, panel_name
from probe.reporting.panels.steps import step_axis, steps_of
from probe.reporting.views import Axis, Coordinate, Grid, Listing, Measure, Panel, ShownColumn

APART = 3  # receivers of paths that have a grid each; of more, one of senders and receivers
TOKENS = 3  # different tokens that are named at a place of several pairs
OF_KEYS = ("k", "v")  # their heads are not those of the queries, which the cursor counts


def panels(context: Context) -> Iterator[Panel]:
    """What the tables `patches` and `patch_means` show. Both texts of a pair have the same, each along its own tokens."""
    if not context.has("patches"):
        return
    pair, about = context.prompt_id // 2, context.summary
    cells = context.tables.once(("patches", pair), lambda: context.run.scan("patches", pair=pair).to_pandas())
    if len(cells):
        ends = cells.iloc[0]
        yield from _CellGrids(
            context, "patches", pair, _column(context), _measures(cells, ends, about), _note(context, ends)
        ).grids(cells, tokens_at(context, pair))
    if context.has("patch_means"):
        means = context.whole("patch_means")
        note = f"Mean over pairs; 95 %: bootstrap over pairs. {_way(about)}"
        yield from _CellGrids(context, "patch_means", None, "pos", _measures(means, None, about), note).grids(
            means, tokens_of_all(context.whole("patches"), means)
        )


class _CellGrids(NamedTuple):
    """One table of cells, as it is shown beside one text. column: of the positions along that text."""

    context: Context
    table: str
    pair: int | None
    column: str
    measures: tuple[Measure, ...]
    note: str

    def grids(self, cells: pd.DataFrame, labels: dict[int, str]) -> Iterator[Panel]:
        """The grids of each site, and of each receiver where paths were patched; of single neurons a listing."""
        for site, own in cells.groupby("site", sort=False, observed=True):
            if bool((own["neuron"] >= 0).any()):
                yield self._neurons(str(site))
                continue
            receivers = list(dict.fromkeys(own["receiver"].astype(str)))
            if len(receivers) > APART:
                yield self._paths(str(site))
                continue
            for receiver in receivers:
                yield from self._of_site(str(site), receiver, labels)

    def _of_site(self, site: str, receiver: str, labels: dict[int, str]) -> Iterator[Grid]:
        """What tells the cells of one layer apart: heads, positions, both, or steps."""
        cells, _ = self._frame(site, receiver)
        along = self._positions(labels)
        layers = Axis("layer", "layer", "layer", {-1: site})
        heads = Axis("head", "head" + (" of keys and values" if site in OF_KEYS else ""), None if site in OF_KEYS else "head")
        if bool((cells["head"] >= 0).all()):
            several = cells["pos"].nunique() > 1
            yield self._grid(site, "head", receiver, layers, heads, {"token": self.column} if several else {})
            if several and heads.cursor:
                yield self._grid(site, "pos", receiver, layers, along, {"head": "head"})
        elif bool(((cells["pos"] == -1) & (cells["step"] >= 0)).all()):
            steps = steps_of(self.context, 0 if self.pair is None else 2 * self.pair)
            yield self._grid(site, "step", receiver, layers, step_axis(steps), {})
        else:
            yield self._grid(site, "pos", receiver, layers, along, {})

    def _grid(
        self, site: str, by: str, receiver: str, layers: Axis, columns: Axis, follows: dict[Coordinate, str]
    ) -> Grid:  # fmt: skip
        words = {"pos": "layer and token", "head": "layer and head", "step": "layer and step"}[by]
        what = f"Path {site} → {receiver}" if receiver else f"Patching {site}"
        frame, where = self._frame(site, receiver)
        return Grid(
            self._name(site, by, receiver), f"{what}, by {words}{self._of()}", self.table, frame, where=where,
            derived=self._derived(frame), follows=follows, note=self.note + (PATH if receiver else ""), rows=layers,
            columns=columns, measures=self.measures, upwards=True,
        )  # fmt: skip

    def _neurons(self, site: str) -> Listing:
        """Those of a site, the strongest first."""
        frame, where = self._frame(site, "")
        shown = [measure.column for measure in self.measures if measure.column in ("effect", "change", "patched")]
        order = frame[shown[0]].abs().sort_values(ascending=False, kind="stable").index
        apart = [ShownColumn(self.column, "position", cursor="token")] if frame["pos"].nunique() > 1 else []
        return Listing(
            self._name(site, "neuron", ""), f"Patching {site}, by neuron{self._of()}", self.table,
            frame.loc[order].reset_index(drop=True), where=where, derived=self._derived(frame), note=self.note,
            columns=(
                ShownColumn("layer", "layer", cursor="layer"), ShownColumn("neuron", "neuron"), *apart,
                *(ShownColumn(name, name, 4) for name in (*shown, "estimate") if frame[name].notna().any()),
                *([ShownColumn("control", "drawn at random")] if frame["control"].any() else []),
            ),
        )  # fmt: skip

    def _paths(self, site: str) -> Grid:
        """Senders and receivers."""
        frame, where = self._frame(site, None)
        several = frame["pos"].nunique() > 1
        return Grid(
            self._name(site, "sender", "receiver"), f"Paths from {site}, by sender and receiver{self._of()}", self.table, frame,
            where=where, derived=self._derived(frame), follows={"token": self.column} if several else {},
            note=self.note + PATH, rows=Axis("sender", "sender"), columns=Axis("receiver", "receiver"), measures=self.measures,
        )  # fmt: skip

    def _frame(self, site: str, receiver: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The rows of one grid, with what is derived of them; made once for both texts and all prompts."""
        where: dict[str, Any] = {} if self.pair is None else {"pair": self.pair}
        where |= {"site": site} | ({} if receiver is None else {"receiver": receiver})
        return self.context.tables.once((self.table, *where.items()), lambda: self._made(where)), where

    def _made(self, where: dict[str, Any]) -> pd.DataFrame:
        rows = self.context.run.scan(self.table, **where).to_pandas()
        order = ["layer", "head", "pos", "step"]  # so that senders stand in their order
        rows = rows.sort_values(order, kind="stable")
        names = [f"{row.site}@{row.layer}" + (f".{row.head}" if row.head >= 0 else "") for row in rows.itertuples()]
        rows = rows.assign(sender=names) if where.get("receiver") is None else rows
        return rows.assign(change_in_floors=rows["change"] / rows["floor"]) if "floor" in rows else rows

    def _derived(self, frame: pd.DataFrame) -> tuple[str, ...]:
        return tuple(name for name in ("sender", "change_in_floors") if name in frame)

    def _positions(self, labels: dict[int, str]) -> Axis:
        if self.pair is None:
            ends = bool(labels) and min(labels) < -1
            return Axis(
                "pos", "token from the end (texts differ in length)" if ends else "token", None if ends else "token", labels
            )
        which = "clean" if self.context.prompt_id % 2 == 0 else "corrupt"
        title = f"token of the {which} text (clean / corrupt where they differ)"
        return Axis(self.column, title, "token", {**labels, -1: "all at once"})

    def _name(self, site: str, by: str, receiver: str) -> str:
        mean = "-means" if self.pair is None else ""
        return f"{'path' if receiver else 'patch'}{mean}-{panel_name(site)}-{by}" + (
            f">{panel_name(receiver)}" if receiver else ""
        )

    def _of(self) -> str:
        return ", mean over pairs" if self.pair is None else ""


PATH = " Along the direct path alone: what the sender changes reaches the receiver and nothing between them."


def _column(context: Context) -> str:
    """The column of positions in the text that is shown: the one that is patched, or the one that patches come from."""
    base = 1 if context.summary["direction"] == "denoise" else 0
    return "pos" if context.prompt_id % 2 == base else "source_pos"


def tokens_at(context: Context, pair: int) -> dict[int, str]:
    """What stands at each position of the text that is shown: its token, clean / corrupt where the other text has another."""
    shown = context.prompt_id % 2
    texts = [context.tables.original(2 * pair + number)[1] for number in (0, 1)]
    labels = {int(row.pos): str(row.token) for row in texts[shown].itertuples()}
    cells = context.tables.once(("patches", pair), lambda: context.run.scan("patches", pair=pair).to_pandas())
    base = 1 if context.summary["direction"] == "denoise" else 0
    tokens = [dict(zip(text["pos"], text["token"], strict=True)) if len(text) else {} for text in texts]
    single = cells[(cells["pos"] >= 0) & (cells["source_pos"] >= 0)]
    for pos, source in single[["pos", "source_pos"]].drop_duplicates().itertuples(index=False):
        at = (int(source), int(pos)) if base else (int(pos), int(source))
        both = [str(tokens[number].get(at[number], "")) for number in (0, 1)]
        if both[0] != both[1]:
            labels[at[shown]] = " / ".join(both)
    return labels


def tokens_of_all(cells: pd.DataFrame, means: pd.DataFrame) -> dict[int, str]:
    """What stands at each position of the means: the tokens that the pairs have there, a few of them."""
    places = sorted({int(pos) for pos in means["pos"]})
    from_end = bool(places) and places[0] < -1
    labels = {pos: f"{pos} (last)" if pos == -1 and from_end else "all at once" if pos == -1 else str(pos) for pos in places}
    if not from_end:
        single = cells[cells["pos"] >= 0]
        for pos, own in single.groupby("pos")["token"]:
            found = list(dict.fromkeys(own.astype(str)))
            labels[int(pos)] = " | ".join(found[:TOKENS]) + (" | …" if len(found) > TOKENS else "")
    return labels


def _measures(cells: pd.DataFrame, ends: pd.Series | None, about: dict[str, Any]) -> tuple[Measure, ...]:
    """The effect first, but where most pairs' clean and corrupt hardly differ the change itself. All grids of a sweep have
    the same scales, so that their colours can be compared."""
    metric = about["metric"]
    band = ("ci_low", "ci_high") if "ci_low" in cells else None
    share = _diverging("effect", "effect: share of clean - corrupt", "", cells["effect"], band)
    undefined = cells["effect"].isna().all()
    least = float(ends["floor"]) if undefined and ends is not None and ends["floor"] > 0 else 0.0  # not of rounding alone
    change = _diverging("change", f"change of {metric} towards the other run", _unit(about), cells["change"], least=least)
    small = 2 * len(about.get("small", ())) > about["pairs"] or undefined
    found = [change, share] if small else [share, change]
    if ends is not None and ends["floor"] > 0:
        floors = cells["change"] / ends["floor"]
        found.append(_diverging("change_in_floors", "change / floor (up to 1: as random patches)", "", floors))
    found.append(Measure("patched", f"{metric}, patched", _unit(about)))
    units = {"logit_diff": "logits", "logprob": "nats", "prob": "", "kl": "nats"}
    found += [Measure(name, f"{name.replace('_', '-')}, patched", unit) for name, unit in units.items() if name in cells]
    found += [Measure("exact", f"{metric}, patched by a forward", _unit(about))] if "exact" in cells else []
    return tuple(one for one in found if one.column == "change_in_floors" or cells[one.column].notna().any())


def _diverging(
    column: str, title: str, unit: str, values: pd.Series, band: tuple[str, str] | None = None, *, least: float = 0.0
) -> Measure:  # fmt: skip
    """A measure with 0 in the middle of its scale, and both ends as far from it as any value, or `least`."""
    most = max(least, float(np.nanmax(np.abs(values)))) if values.notna().any() else least
    most = most if most > 0 else 1.0
    return Measure(column, title, unit, "diverging", -most, most, band)


def _unit(about: dict[str, Any]) -> str:
    return str(about["unit"]).split(",")[0]


def _note(context: Context, ends: pd.Series) -> str:
    """What is measured, in which direction, and what chance does."""
    about, pair = context.summary, int(ends["pair"])
    named = context.run.manifest.get("resolved", {}).get("pairs") or []
    *_, answer, against = named[pair] if pair < len(named) else (about["answer"], about["against"])
    followed = f"{about['metric']} of {answer!r}" + ("" if against is None else f" against {against!r}")
    if about.get("at"):
        followed += f" after {about['at']['measure_at']} of the clean text"
    values = f"{followed} ({about['unit']}): clean {ends['clean']:+.3f}, corrupt {ends['corrupt']:+.3f}."
    floor = ends["floor"]
    chance = f" Floor: 95 % of random patches of the same norm change it by less than {floor:.3f}." if floor == floor else ""
    trouble = ""
    if pair in about.get("undefined", ()):
        trouble = " Clean and corrupt have the same value, so that no effect is defined."
    elif pair in about.get("small", ()):
        trouble = " Clean and corrupt differ by less than that: look at the change."
    return f"{values} {_way(about)}{chance}{trouble}{_estimated(about)}"


def _way(about: dict[str, Any]) -> str:
    into = (
        "the corrupt run: 0 is as corrupt, 1 as clean"
        if about["direction"] == "denoise"
        else "the clean run: 0 is as clean, 1 as corrupt"
    )
    other = "clean" if about["direction"] == "denoise" else "corrupt"
    what = {"clean": other, "zero": "zeros", "mean": "the mean of all texts", "resample": "values of other places"}
    put = what.get(about["from"], about["from"])
    return f"{put[0].upper()}{put[1:]} put into {into}."


def _estimated(about: dict[str, Any]) -> str:
    """How good an estimate from gradients is."""
    if about["method"] == "exact":
        return ""
    points = f", averaged over {about['ig']} points between the texts" if about.get("ig") else ""
    found = about.get("agreement")
    known = (
        f"; against {found['n']} exact patches Spearman {found['spearman']:.3f}"
        if found and found["spearman"] is not None
        else ""
    )
    return f" Estimated from the gradient{points}{known}."
