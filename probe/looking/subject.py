"""What is looked at: a text up to one position, the answer there and what it is compared with, and how commands name it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.texts import TokenSequence


class AnswerPair(NamedTuple):
    """The two tokens that are compared."""

    answer: int
    against: int


@dataclass(frozen=True)
class Subject:
    """The first `position` + 1 ids of a sequence. where: the run or prompt, and the position, as a command takes them."""

    lm: LanguageModel
    sequence: TokenSequence
    position: int
    choice: AnswerPair
    where: str
    seed: int
    controls: int

    @property
    def ids(self) -> list[int]:
        """The ids that the answer follows."""
        return self.sequence.ids[: self.position + 1]

    def label(self, pos: int) -> str:
        """A token of the text, in quotes."""
        return quoted(self.lm.label(self.sequence.ids[pos], self.sequence.tokens[pos]))

    @property
    def answer(self) -> str:
        """The answer, in quotes."""
        return quoted(self.lm.token_text(self.choice.answer))

    def command(self, verb: str, *options: str) -> str:
        """The command that shows more."""
        return " ".join(["probe", verb, self.where, *options])

    def edited(self, edit: str) -> str:
        """The command that shows the layers after an edit."""
        return self.command("lens", "--position", str(self.position), "--edit", edit)

    def answers(self) -> list[str]:
        """The options that name the answer and its rival; none where a text cannot name them: a part of a character."""
        texts = [self.lm.token_text(token) for token in self.choice]
        if any(list(self.lm.ids_of(text))[:1] != [token] for text, token in zip(texts, self.choice, strict=True)):
            return []
        return ["--answer", shlex.quote(texts[0]), "--against", shlex.quote(texts[1])]


def quoted(text: str) -> str:
    """A token as it is told of: between quotes, with control characters escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())
