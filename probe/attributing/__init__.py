"""Direct logit attribution: what each head, MLP and embedding wrote towards an answer, as parts that sum to its logit."""

from probe.attributing.attributing import attribute, plan_attribute, run_attribute

__all__ = ["attribute", "plan_attribute", "run_attribute"]
