"""Two samples files, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.errors import DataError
from stillhouse.evaluation.pairing import compare_items, compare_samples, read_scores
from stillhouse.evaluation.scores import Item, Part, item_scores


def write(path: Path, scores: list[dict[str, float]], first: int = 0) -> Path:
    items = [
        Item(str(first + i), "d", f"prompt {first + i}", "gold", "text", parts={k: Part(v) for k, v in row.items()})
        for i, row in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(item.to_json()) + "\n" for item in items))
    return path


def test_by_hand(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [{"exact_match": float(c), "chrf": 0.5} for c in "1101101101"])
    b = write(tmp_path / "b", [{"exact_match": float(c)} for c in "1001001110"])
    found = compare_samples(a, b)
    assert set(found) == {"exact_match"}
    assert found["exact_match"].delta == pytest.approx(0.2)
    assert found["exact_match"].standard_error == pytest.approx(0.2)
    assert compare_samples(b, a)["exact_match"].delta == pytest.approx(-0.2)


def test_only_shared_rows_count(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [{"s": 1.0}, {"s": 0.0}, {"s": 1.0}])
    b = write(tmp_path / "b", [{"s": 0.0}, {"s": 0.0}], first=1)
    found = compare_samples(a, b)["s"]
    assert (found.n, found.delta) == (2, 0.5)
    with pytest.raises(DataError, match="have no scored row in common"):
        compare_samples(a, write(tmp_path / "c", [{"s": 1.0}], first=9))
    with pytest.raises(DataError, match="have no scored row in common"):
        compare_samples(a, write(tmp_path / "d", [{"other": 1.0}]))


def test_rows_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    twice = [Item("1", "d", "same", None, parts={"s": Part(v)}) for v in (1.0, 0.0)]
    path = tmp_path / "a"
    path.write_text("".join(json.dumps(item.to_json()) + "\n" for item in twice))
    assert list(read_scores(path).values()) == [{"s": 1.0}, {"s": 0.0}]
    assert compare_items(twice, path)["s"].interval == (0.0, 0.0)


def test_instruction_weights(tmp_path: Path) -> None:
    # 2 of 4 and 1 of 1: together 3 of 5, each row's own share .5 and 1.
    items = [Item(str(i), "d", "p", None, parts={"s": part}) for i, part in enumerate((Part(2, 4), Part(1, 1)))]
    assert item_scores(items)["s"].score == pytest.approx(0.6)
    assert [item.to_json()["scores"]["s"] for item in items] == [0.5, 1.0]
    assert [item.to_json()["weights"] for item in items] == [{"s": 4}, {}]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": 1}', '{"id": 1, "domain": "d", "prompt": "p", "scores": {"s": "x"}}']
)
def test_a_damaged_file_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a", [{"s": 1.0}])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"a:2: not a line that --samples-out wrote"):
        read_scores(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "absent")
