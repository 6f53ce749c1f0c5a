"""What stands around every input: an instruction that all rows share is not for the model to invent again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLACE = "{input}"
_ENDS_OF_INSTRUCTIONS = ("\n", ": ")


@dataclass(frozen=True)
class Frame:
    """Fixed text before and after the part that varies."""

    before: str = ""
    after: str = ""

    @classmethod
    def parse(cls, text: str) -> Frame:
        """Split a text that holds ``{input}`` once."""
        before, _, after = text.partition(PLACE)
        return cls(before, after)

    @classmethod
    def shared(cls, texts: Sequence[str]) -> Frame:
        """Return what all texts begin and end with, as far as whole lines or labels (``Message: ``) go.

        Texts that merely happen to begin with the same word share nothing, and a single text has no frame.
        """
        if len(set(texts)) < 2:
            return cls()
        start = _common_beginning(texts)
        before = start[: max(start.rfind(end) + len(end) if end in start else 0 for end in _ENDS_OF_INSTRUCTIONS)]
        rests = [text[len(before) :] for text in texts]
        tail = _common_beginning([rest[::-1] for rest in rests])[::-1]
        return cls(before, tail[tail.index("\n") :] if "\n" in tail else "")

    def fits(self, text: str) -> bool:
        """Whether the text has this frame, with something in it."""
        inside = len(text) > len(self.before) + len(self.after)
        return inside and text.startswith(self.before) and text.endswith(self.after)

    def unwrap(self, text: str) -> str:
        """Return what varies; a text that has another form is returned whole."""
        return text[len(self.before) : len(text) - len(self.after)] if self.fits(text) else text

    def wrap(self, text: str) -> str:
        """Put the frame around an input."""
        return self.before + text + self.after


def _common_beginning(texts: Sequence[str]) -> str:
    """What all texts share stands between the first and the last of them in the order of the alphabet."""
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
