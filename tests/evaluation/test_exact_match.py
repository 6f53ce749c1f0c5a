"""The table that defines when a prediction counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.exact_match import DomainScore, ExactMatchReport, exact_match, exact_match_report


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        # Text: case, white space and one full stop at the end do not matter, anything else does.
        ("Montpellier , France", "Montpellier , France", True),
        ("  yes.\n", "Yes", True),
        ("the  last of\nthe Mohicans", "The Last of the Mohicans", True),
        ("STRASSE", "Straße", True),
        ("Animals acquire nutrients by ingestion", "Animals acquire nutrients by ingestion.", True),
        ("Yes, because it rains", "Yes", False),
        ("etc..", "etc", False),
        ("", "Yes", False),
        # Numbers: the last of the prediction, as a number.
        ("So they pick 72 + 35 = 107 fruits.\n#### 107", "107", True),
        ("72 + 35 = 107", "107", True),
        ("107 of 200", "107", False),
        ("#### 107\nThat was problem 3.", "107", True),
        ("#### Step 1\n4 + 4 = 8\n#### 8", "8", True),
        ("####", "8", False),
        ("#### 8", "4 + 4 = 8\n#### 8", True),
        ("$1,200.00", "1200", True),
        ("1200", "$1,200", True),
        ("He pays 12.50.", "12.5", True),
        ("It is -5", "-5", True),
        ("It is 5", "-5", False),
        ("10-5", "5", True),
        ("40 %, so 40%", "40%", True),
        ("one of .5", "0.5", True),
        ("about 107.5", "107", False),
        ("no number", "107", False),
        ("x107", "107", False),
        ("12,", "12", True),
        # A choice: its letter first, or stated.
        ("B", "B", True),
        ("b", "B", True),
        ("B.", "B", True),
        ("(B)", "B", True),
        ("B) setting the foundation", "B", True),
        ("B: the second", "B", True),
        ("B\nbecause of the rest", "B", True),
        ("The answer is B", "B", True),
        ("The answer is (B).", "B", True),
        ("I think it rains. Answer: B", "B", True),
        ("The correct option is B, since A is wet", "B", True),
        ("The answer is A. No, the answer is B.", "B", True),
        ("A. The answer is B", "A", True),
        ("A man walks", "A", False),
        ("Because", "B", False),
        ("B and C", "B", False),
        ("C", "B", False),
        ("The answer is a matter of taste", "A", False),
        ("", "A", False),
        # Other single letters are text.
        ("f", "F", True),
        ("The answer is F", "F", False),
        # BBH's letters in parentheses.
        ("So it is not (A) but (C).", "(C)", True),
        ("(C) rather than (A)", "(C)", False),
        ("c.", "(C)", True),
        ("see the chart", "(C)", False),
    ],
)
def test_table(prediction: str, answer: str, expected: bool) -> None:
    assert exact_match(prediction, answer) is expected


@given(st.integers(-(10**12), 10**12), st.text(alphabet="abc .=+#\n", max_size=20))
def test_a_number_at_the_end_is_found(number: int, before: str) -> None:
    assert exact_match(f"{before} {number:,}", str(number))
    assert exact_match(f"{before} #### {number}.00\n", f"{number:,}")
    assert not exact_match(f"{before} {number + 1}", str(number))


@given(st.text(max_size=30))
def test_no_prediction_raises_and_text_equals_itself(text: str) -> None:
    for answer in ("7", "A", "yes"):
        exact_match(text, answer)
    if "#" not in text and not any(c.isdigit() for c in text):
        assert exact_match(text.upper(), text.upper() + " ") or text.strip().upper() in "ABCDE"


def test_scores_by_domain() -> None:
    # math 1 of 2, logic 1 of 1; over rows 2 of 3.
    report = exact_match_report(["math", "math", "logic"], [True, False, True])
    assert report == ExactMatchReport(2 / 3, 3, {"logic": DomainScore(1.0, 1), "math": DomainScore(0.5, 2)})
