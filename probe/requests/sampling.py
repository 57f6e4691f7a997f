"""How tokens are drawn, as plain values. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

from probe.errors import BadOption


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
