"""What a run has drawn, read again by another rule, by a file of labels or by a judge."""

from probe.relabelling.relabelling import relabel, run_relabel

__all__ = ["relabel", "run_relabel"]
