"""What can go wrong that a user can cause or repair; each error is one sentence and one hint."""

from __future__ import annotations


class ProbeError(Exception):
    """A stated failure: `message` says what, `hint` says what to do. The shell prints both and exits with 1."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnknownModel(ProbeError):
    """No model goes by that name, here or on the Hub."""


class BadModel(ProbeError):
    """There is something at that name, but not a causal language model that can be loaded."""


class BadPlace(ProbeError):
    """A place (`SITE[@LAYERS[.HEADS]][:POSITIONS]`) that cannot be read."""


class UnknownSite(BadPlace):
    """A site that does not exist."""


class OutOfRange(BadPlace):
    """A layer, head or position that the model or the text does not have."""


class SiteAbsent(BadPlace):
    """A site that exists in general, but that no verified equation finds in this model."""


class BadEdit(ProbeError):
    """An edit that cannot be read, does not fit the model or the text, or could have no effect."""


class BadPrompt(ProbeError):
    """A prompt that cannot be run: empty, too long, or not readable."""


class BadOption(ProbeError):
    """An option whose value makes no sense, or not with the others."""


class BadExpectation(BadOption):
    """What is expected of a run cannot be read, or names a table or a column that such a run does not have."""


class BadRecipe(ProbeError):
    """A recipe that there is not, or whose files cannot be used."""


class BadJudge(ProbeError):
    """A command that judges completions and does not start, does not answer, or answers with what is no outcome."""


class NonFinite(ProbeError):
    """The model produced NaN or infinite logits. `row`: the first of a batch that did, where it is known."""

    row: int | None = None


class OutOfMemory(ProbeError):
    """Memory does not hold what one text, one continuation or one cell takes; several are tried by halves first."""


class RunError(ProbeError):
    """A run directory that is missing, unfinished, altered, in the way or locked."""


class StorageFull(RunError):
    """The disk is full or the directory cannot be written; what is finished is kept."""


class EngineError(ProbeError):
    """A server that does not answer, answers what cannot be used, or has another model."""
