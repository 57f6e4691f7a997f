"""Many answers to each problem: how often they are right, what most of them say, and which problems tell something."""

from probe.sampling.sampling import expected_of_all, keep_problems, measure, plan_sample, run_sample, sample

__all__ = ["expected_of_all", "keep_problems", "measure", "plan_sample", "run_sample", "sample"]
