"""Two models on one text, or two runs: where they differ, token by token and layer by layer."""

from probe.comparing.comparing import compare, plan_compare, run_compare

__all__ = ["compare", "plan_compare", "run_compare"]
