"""The logit lens as a verb: what each layer would answer, on a prompt or a run, edited or not."""

from probe.lensing.lensing import lens, plan_lens, run_lens

__all__ = ["lens", "plan_lens", "run_lens"]
