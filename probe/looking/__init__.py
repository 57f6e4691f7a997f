"""The first look at a text: facts that stand out against their controls, most telling first, each with the next command."""

from probe.looking.looking import look, plan_look, run_look

__all__ = ["look", "plan_look", "run_look"]
