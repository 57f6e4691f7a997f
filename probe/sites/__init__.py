"""What can be read or changed in a model, and the words for it: `SITE[@LAYERS[.HEADS]][:POSITIONS]`. Knows no model."""

from probe.sites.catalogue import SITES, Site, find_site, sites_for, sites_of
from probe.sites.places import Cell, Place, parse_place, parse_places, parse_where, resolve, split_edit, units_read
from probe.sites.positions import Positions, Range

__all__ = [
    "SITES",
    "Cell",
    "Place",
    "Positions",
    "Range",
    "Site",
    "find_site",
    "parse_place",
    "parse_places",
    "parse_where",
    "resolve",
    "sites_for",
    "sites_of",
    "split_edit",
    "units_read",
]
