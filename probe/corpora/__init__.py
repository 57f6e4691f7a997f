"""Files of texts, read once: in which of them a place is largest, and the means and variances of sites."""

from probe.corpora.averaging import means, plan_means, run_means
from probe.corpora.ranking import plan_top, run_top, top

__all__ = ["means", "plan_means", "plan_top", "run_means", "run_top", "top"]
