"""Which paths are asked for: senders and receivers of a text, and which receivers come after which senders. Runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from probe.errors import BadOption, OutOfRange, SiteAbsent
from probe.interventions import cells
from probe.interventions.checking import check_cell
from probe.patching.cells import check_whole
from probe.patching.pairs import Pair
from probe.requests import PatchSweep
from probe.sites import SITES, Place, parse_place, sites_for
from probe.sites.catalogue import Use

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ARROW = "->"
FORM = "SENDER->RECEIVER, as in z@5.3->q@8.1 or mlp_out@4->logits"
USES: tuple[Use, Use] = ("send", "receive")


class Endpoint(NamedTuple):
    """One end of a path: a site of a layer, of one head or of the whole width (None), at positions (ascending)."""

    site: str
    layer: int
    head: int | None
    positions: tuple[int, ...]

    def __str__(self) -> str:
        if not SITES[self.site].per_layer:
            return self.site
        return f"{self.site}@{self.layer}" if self.head is None else f"{self.site}@{self.layer}.{self.head}"


def parse_path(text: str) -> tuple[Place, Place]:
    """The places that `SENDER->RECEIVER` names. Raises `BadOption`, `BadPlace` and its kinds."""
    sender, arrow, receiver = text.partition(ARROW)
    if not arrow or ARROW in receiver or not sender.strip() or not receiver.strip():
        raise BadOption(f"'{text}' is not a path", hint=f"write {FORM}, in quotes: > is the shell's")
    places = parse_place(sender), parse_place(receiver)
    for place, use in zip(places, USES, strict=True):
        if use not in SITES[place.site].uses:
            raise BadOption(f"'{place.site}' cannot {use} on a path", hint=f"what can: {', '.join(sites_for(use))}")
    return places


@dataclass(frozen=True)
class PathGroup:
    """All paths from the heads (or the whole) of one site and layer."""

    site: str
    layer: int
    paths: tuple[tuple[Endpoint, Endpoint], ...]

    def __len__(self) -> int:
        return len(self.paths)


def path_groups(lm: LanguageModel, pair: Pair, request: PatchSweep) -> tuple[PathGroup, ...]:
    """The paths of one pair, by the site and layer of their senders. Raises what `paths_of` does."""
    assert request.path is not None
    base, steps = pair.base(request.towards), pair.clean_steps if len(pair.clean) == len(pair.corrupt) else ()
    found = paths_of(
        lm, request.path, n=len(base), sendable=sorted(pair.origins(request.towards)), apart="pos" in (request.by or ()),
        tokens=lm.pieces(base).tokens, steps=steps,
    )  # fmt: skip
    grouped: dict[tuple[str, int], list[tuple[Endpoint, Endpoint]]] = {}
    for sender, receiver in found:
        grouped.setdefault((sender.site, sender.layer), []).append((sender, receiver))
    return tuple(PathGroup(site, layer, tuple(paths)) for (site, layer), paths in grouped.items())


def paths_of(
    lm: LanguageModel, path: str, *, n: int, sendable: Sequence[int], apart: bool = False, tokens: Sequence[str] = (),
    steps: Sequence[tuple[int, int]] = (),
) -> list[tuple[Endpoint, Endpoint]]:  # fmt: skip
    """Every sender with every receiver that comes after it, in a text of n tokens; each head, and each layer, by itself.

    sendable: positions that have a new value to send. apart: senders' positions one by one. Raises `BadOption` where no
    receiver comes after a sender, `SiteAbsent` where a site is not there or a layer's writes are not known, and so cannot
    be held; what reading positions raises.
    """
    sender, receiver = parse_path(path)
    senders = _ends(lm, sender, n, tokens, steps, only=set(sendable))
    receivers = _ends(lm, receiver, n, tokens, steps, only=None)
    if apart:
        senders = [end._replace(positions=(p,)) for end in senders for p in end.positions]
    found = [(a, b) for a in senders for b in receivers if follows(lm, a, b)]
    if not found:
        raise BadOption(f"on '{path}' no receiver reads the stream after its sender has written to it",
                        hint="a receiver stands above its sender, or is logits")  # fmt: skip
    for number, layer in enumerate(lm.anatomy.layers):
        if not layer.writes or layer.carry == 0:
            raise SiteAbsent(f"the writes of layer {number} are not found, so they cannot be held: {layer.equation}",
                             hint="patch without a path")  # fmt: skip
    return found


def _ends(
    lm: LanguageModel, place: Place, n: int, tokens: Sequence[str], steps: Sequence[tuple[int, int]], *,
    only: set[int] | None,
) -> list[Endpoint]:  # fmt: skip
    ends = []
    for cell in cells(lm, str(place)):
        check_cell(lm, cell, "patch")
        check_whole(cell)
        named = cell.positions.indices(n, n, steps=steps, tokens=tokens)
        here = tuple(p for p in sorted(named) if only is None or p in only)
        if not here:
            raise OutOfRange(f"{cell.site}:{cell.positions} has no position that both texts have", hint="see --align")
        ends += [Endpoint(cell.site, cell.layer, head, here) for head in cell.heads or (None,)]
    return ends


def follows(lm: LanguageModel, sender: Endpoint, receiver: Endpoint) -> bool:
    """Whether the receiver reads the stream after the sender has written to it."""
    one, other = SITES[sender.site], SITES[receiver.site]
    after = one.moment(sender.layer) < other.moment(receiver.layer)
    if sender.layer == receiver.layer and one.part and other.part:
        return after and lm.anatomy.has("resid_mid", sender.layer)  # else both read the same stream
    return after


def reaches(lm: LanguageModel, sender: Endpoint, receiver: Endpoint, *, last: int) -> bool:
    """Whether a change at the sender's positions can be seen at the receiver's; logits are read at the `last` position."""
    at = (last,) if receiver.site == "logits" else receiver.positions
    return not lm.anatomy.causal or sender.positions[0] <= at[-1]
