"""What can be asked of each verb, as frozen plain values: a public function's keywords, a command's options, a manifest's
`arguments`. Imports nothing heavy, runs nothing."""

from probe.requests.attribute import Attribute
from probe.requests.base import Progress, Request, public
from probe.requests.compare import Compare
from probe.requests.corpora import CorpusMeans, CorpusOptions, Top
from probe.requests.explain import Explain
from probe.requests.groups import FROM_TABLE, ChatOptions, FileOptions, SourceOptions, plain_prompts, prompts_of  # fmt: skip
from probe.requests.heads import AttentionHeads
from probe.requests.import_states import ImportStates
from probe.requests.lens import Lens
from probe.requests.look import Look
from probe.requests.options import Option, options_of, plain
from probe.requests.outcomes import OutcomeOptions
from probe.requests.patch import PatchSweep
from probe.requests.relabel import Relabel
from probe.requests.rewind import Importance, Rewind
from probe.requests.sample import Sample
from probe.requests.sampling import KEYWORDS, ContinuedSamplingOptions, Sampling, SamplingOptions, sampling_of
from probe.requests.speculate import Speculate
from probe.requests.steer import MakeDirection, Steer
from probe.requests.trace import Trace
from probe.requests.view import ViewRuns
from probe.requests.weights import WeightSurvey

REQUESTS: dict[str, type[Request]] = {
    kind.command: kind
    for kind in (
        AttentionHeads, Attribute, Compare, CorpusMeans, Explain, Importance, ImportStates, Lens, Look, MakeDirection,
        PatchSweep, Relabel, Rewind, Sample, Speculate, Steer, Top, Trace, WeightSurvey,
    )
}  # fmt: skip


__all__ = [
    "FROM_TABLE",
    "KEYWORDS",
    "REQUESTS",
    "AttentionHeads",
    "Attribute",
    "ChatOptions",
    "Compare",
    "ContinuedSamplingOptions",
    "CorpusMeans",
    "CorpusOptions",
    "Explain",
    "FileOptions",
    "ImportStates",
    "Importance",
    "Lens",
    "Look",
    "MakeDirection",
    "Option",
    "OutcomeOptions",
    "PatchSweep",
    "Progress",
    "Relabel",
    "Request",
    "Rewind",
    "Sample",
    "Sampling",
    "SamplingOptions",
    "SourceOptions",
    "Speculate",
    "Steer",
    "Top",
    "Trace",
    "ViewRuns",
    "WeightSurvey",
    "options_of",
    "plain",
    "plain_prompts",
    "prompts_of",
    "public",
    "sampling_of",
]  # fmt: skip
