"""Outcomes that a command or a file gives to what a run has drawn."""

from probe.labelling.completions import Completed, completions
from probe.labelling.labelling import counted, label, labellers

__all__ = ["Completed", "completions", "counted", "label", "labellers"]
