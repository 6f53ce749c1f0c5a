"""What stands around every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.synthesis.frame import Frame

INSTRUCTION = "Name the intent of this message with one label of the label set.\n\nMessage: "


def test_a_shared_instruction_is_the_frame() -> None:
    texts = [INSTRUCTION + text for text in ("Where is my card?", "Where did it go?", "top up failed")]
    frame = Frame.shared(texts)
    assert frame == Frame(INSTRUCTION)
    assert [frame.unwrap(t) for t in texts] == ["Where is my card?", "Where did it go?", "top up failed"]


def test_texts_that_begin_alike_by_chance_have_no_frame() -> None:
    assert Frame.shared(["How do I pay?", "How do I top up?"]) == Frame()
    assert Frame.shared([INSTRUCTION + "Why me?", INSTRUCTION + "Why now?"]) == Frame(INSTRUCTION)
    assert Frame.shared(["one text only: here"]) == Frame()
    assert Frame.shared(["x: y", "x: y"]) == Frame()


def test_a_shared_end_counts_by_whole_lines() -> None:
    texts = ["Read: the cat sat\nAnswer yes or no.", "Read: the dog sat\nAnswer yes or no."]
    assert Frame.shared(texts) == Frame("Read: ", "\nAnswer yes or no.")


@given(st.lists(st.text("ab:\n ", max_size=12), min_size=1, max_size=5))
def test_the_frame_fits_or_is_empty(texts: list[str]) -> None:
    frame = Frame.shared(texts)
    for text in texts:
        if frame.fits(text):
            assert frame.wrap(frame.unwrap(text)) == text
        else:
            assert text == frame.before + frame.after  # nothing varies in it


def test_a_given_frame() -> None:
    frame = Frame.parse("Translate: {input}\nGerman:")
    assert frame == Frame("Translate: ", "\nGerman:")
    assert frame.wrap("cat") == "Translate: cat\nGerman:"
    assert not frame.fits("Translate: cat")
    assert frame.unwrap("Translate: cat") == "Translate: cat"


@pytest.mark.parametrize("text", ["Translate: \nGerman:", "Translate:"])
def test_nothing_inside_does_not_fit(text: str) -> None:
    assert not Frame.parse("Translate: {input}\nGerman:").fits(text)
