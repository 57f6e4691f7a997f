"""Changing activations of a live model: edits, from their text or from tensors, and the context in which they hold."""

from probe.interventions.applying import Applied, applying
from probe.interventions.checking import cells, check_edits
from probe.interventions.directions import Direction, load_direction, save_direction
from probe.interventions.edits import Add, Cut, Edit, Mean, Noise, Patch, Project, Resample, Scale, Zero
from probe.interventions.parsing import edit_texts, parse_all, parse_edits
from probe.interventions.positions import edits_up_to, locate_edits

__all__ = [
    "Add",
    "Applied",
    "Cut",
    "Direction",
    "Edit",
    "Mean",
    "Noise",
    "Patch",
    "Project",
    "Resample",
    "Scale",
    "Zero",
    "applying",
    "cells",
    "check_edits",
    "edit_texts",
    "edits_up_to",
    "load_direction",
    "locate_edits",
    "parse_all",
    "parse_edits",
    "save_direction",
]
