"""How tokens are drawn, as plain values. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from probe.errors import BadOption
from probe.requests.options import Option


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; nothing is filtered unless it is asked for."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    suppress: tuple[int, ...] = ()  # ids that are never drawn

    def __post_init__(self) -> None:
        object.__setattr__(self, "suppress", tuple(self.suppress))
        if not isinstance(self.stop, str):  # which is refused
            object.__setattr__(self, "stop", tuple(self.stop))
        legal = (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0.0 < self.top_p <= 1.0, "more than 0, at most 1"),
            ("min_p", self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "more than 0; 1 is none"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "texts that are not empty"),
            ("seed", self.seed >= 0, "0 or more"),
        )
        for name, fine, what in legal:
            if not fine:
                raise BadOption(f"{name} is {getattr(self, name)!r}", hint=f"it is {what}")
        if self.temperature == 0.0 and any(x is not None for x in (self.top_k, self.top_p, self.min_p)):
            raise BadOption(
                "filters do nothing to greedy decoding", hint="add --temperature 1, or drop --top-k, --top-p, --min-p"
            )

    @property
    def filtered(self) -> bool:
        """Whether some tokens can't be drawn."""
        return self.top_k is not None or bool(self.min_p) or (self.top_p is not None and self.top_p < 1.0)


def sampling_of(argument: Any) -> Sampling | None:
    """A sampling from its plain values."""
    return None if argument is None else Sampling(**argument)


KEYWORDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
"""Fields of `Sampling` that can be given one by one."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn: greedily, if nothing is said.

    What is given one by one becomes `sampling` when the request is made; the single fields say nothing after that, so that
    one place has what holds. Raises `BadOption` as `Sampling` does, and where something is given both ways.
    """

    temperature: Annotated[
        float | None, Option("0 is greedy.", ("--temperature", "-t"), minimum=0.0, default="0.0", stored=False)
    ] = None  # fmt: skip
    top_k: Annotated[int | None, Option("Sample among the K most probable tokens.", minimum=1, stored=False)] = None
    top_p: Annotated[float | None, Option("Sample within this mass.", minimum=0.0, maximum=1.0, stored=False)] = None
    min_p: Annotated[
        float | None, Option("Drop below this share of the top.", minimum=0.0, maximum=1.0, stored=False)
    ] = None  # fmt: skip
    repetition_penalty: Annotated[float | None, Option("1 is none.", minimum=1e-6, default="1.0", stored=False)] = None
    stop: Annotated[
        str | tuple[str, ...], Option("Stop at this string; repeatable.", shell=list[str] | None, stored=False)
    ] = ()  # fmt: skip
    seed: Annotated[int | None, Option("Seeds every random choice.", minimum=0, default="0", stored=False)] = None
    sampling: Annotated[
        Sampling | None,
        Option("All of how tokens are drawn, in place of its single keywords.", hidden=True, from_plain=sampling_of),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # of the request that has these options
        said = {name: value for name in KEYWORDS if (value := getattr(self, name)) not in (None, ())}
        sampling = self.sampling
        if sampling is None:
            sampling = self.sampling_said(said)
        elif other := [name for name, value in said.items() if value != getattr(sampling, name)]:
            raise BadOption(
                f"{other[0]} is given beside a sampling that has another", hint="say it in the sampling, or leave that out"
            )
        object.__setattr__(self, "sampling", sampling)
        if sampling is not None:
            for name in said:
                object.__setattr__(self, name, () if name == "stop" else None)

    def sampling_said(self, said: dict[str, Any]) -> Sampling | None:
        """The sampling of what was given one by one."""
        return Sampling(**said)


@dataclass(frozen=True, kw_only=True)
class ContinuedSamplingOptions(SamplingOptions):
    """How tokens are drawn where a run is gone on with: as it was, with a seed, if nothing else is said."""

    temperature: Annotated[
        float | None, Option("0 is greedy.", ("--temperature", "-t"), minimum=0.0, default="as the run", stored=False)
    ] = None  # fmt: skip
    seed: Annotated[int | None, Option("Seeds every random choice.", minimum=0, default="0")] = None
    sampling: Annotated[
        Sampling | None,
        Option(
            "All of how tokens are drawn; None is the run's own, or temperature 0.6 and top-p 0.95 if that was greedy.",
            hidden=True, from_plain=sampling_of,
        ),
    ] = None  # fmt: skip

    def sampling_said(self, said: dict[str, Any]) -> Sampling | None:
        """None, which is the run's own, without a temperature."""
        if "temperature" in said:
            return Sampling(**said)
        if said.keys() - {"seed"}:
            raise BadOption("filters need a temperature", hint="add --temperature 0.6")
        return None

    @classmethod
    def upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Manifests of before have a seed beside a sampling, which has its own."""
        return {**arguments, "seed": None} if arguments.get("sampling") else arguments
