"""probe: record what a causal language model does, change one thing, measure the difference. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.attention_heads import heads
    from probe.attributing import attribute
    from probe.comparing import compare
    from probe.corpora import means, top
    from probe.errors import ProbeError
    from probe.expecting import expect
    from probe.explaining import explain
    from probe.importing import import_states
    from probe.language_model import LanguageModel, load
    from probe.lensing import lens
    from probe.looking import look
    from probe.matrices import weights
    from probe.patching import patch
    from probe.relabelling import relabel
    from probe.replaying import replay
    from probe.reporting.viewing import view
    from probe.requests import Sampling
    from probe.rewinding import rewind
    from probe.sampling import sample
    from probe.speculating import speculate
    from probe.stats import student_mean
    from probe.steering import make_direction, steer
    from probe.step_importance import importance
    from probe.store import Run, list_runs, open_run
    from probe.tracing import trace
    from probe.weight_edits import edit_weights

_HOME = {
    "LanguageModel": "probe.language_model",
    "ProbeError": "probe.errors",
    "Run": "probe.store",
    "Sampling": "probe.requests",
    "attribute": "probe.attributing",
    "compare": "probe.comparing",
    "edit_weights": "probe.weight_edits",
    "expect": "probe.expecting",
    "explain": "probe.explaining",
    "heads": "probe.attention_heads",
    "import_states": "probe.importing",
    "importance": "probe.step_importance",
    "lens": "probe.lensing",
    "list_runs": "probe.store",
    "load": "probe.language_model",
    "look": "probe.looking",
    "make_direction": "probe.steering",
    "means": "probe.corpora",
    "open_run": "probe.store",
    "patch": "probe.patching",
    "relabel": "probe.relabelling",
    "replay": "probe.replaying",
    "rewind": "probe.rewinding",
    "sample": "probe.sampling",
    "speculate": "probe.speculating",
    "steer": "probe.steering",
    "student_mean": "probe.stats",
    "top": "probe.corpora",
    "trace": "probe.tracing",
    "view": "probe.reporting.viewing",
    "weights": "probe.matrices",
}
_ALIASES = {"patch_sweep": "patch"}

__all__ = [
    "LanguageModel",
    "ProbeError",
    "Run",
    "Sampling",
    "attribute",
    "compare",
    "edit_weights",
    "expect",
    "explain",
    "heads",
    "import_states",
    "importance",
    "lens",
    "list_runs",
    "load",
    "look",
    "make_direction",
    "means",
    "open_run",
    "patch",
    "relabel",
    "replay",
    "rewind",
    "sample",
    "speculate",
    "steer",
    "student_mean",
    "top",
    "trace",
    "view",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mechprobe")
    name = _ALIASES.get(name, name)
    if name not in _HOME:
        raise AttributeError(f"module 'probe' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
