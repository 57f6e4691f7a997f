"""How much each reasoning step matters: by drawing it anew, by forbidding to look at it, by forcing the answer, and more."""

from probe.step_importance.measuring import importance, plan_importance, run_importance

__all__ = ["importance", "plan_importance", "run_importance"]
