"""Hidden states that a serving engine wrote, checked against the model's own read and kept as a run."""

from probe.importing.recording import import_states, plan_import_states, run_import_states

__all__ = ["import_states", "plan_import_states", "run_import_states"]
