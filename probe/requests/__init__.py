"""What can be asked of each verb, as frozen plain values: a public function's keywords, a command's options, a manifest's
`arguments`. Imports nothing heavy, runs nothing."""

from probe.requests.base import Progress, Request, public
from probe.requests.groups import FROM_TABLE, ChatOptions, FileOptions, plain_prompts, prompts_of, sampling_of
from probe.requests.options import Option, options_of, plain
from probe.requests.rewind import Importance, Rewind
from probe.requests.sampling import Sampling
from probe.requests.trace import Trace

REQUESTS: dict[str, type[Request]] = {kind.command: kind for kind in (Trace, Rewind, Importance)}

__all__ = [
    "FROM_TABLE",
    "REQUESTS",
    "ChatOptions",
    "FileOptions",
    "Importance",
    "Option",
    "Progress",
    "Request",
    "Rewind",
    "Sampling",
    "Trace",
    "options_of",
    "plain",
    "plain_prompts",
    "prompts_of",
    "public",
    "sampling_of",
]  # fmt: skip
