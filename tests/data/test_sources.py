"""Reading files: every format, nested draws, and bad input that names file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.data.rows import Message, Row
from stillhouse.data.sources import draw, find_files, load_rows
from stillhouse.errors import DataError
from stillhouse.recipe import Columns, SourceConfig

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: str | Path, base_dir: Path, **options: Any) -> list[Row]:
    return load_rows([SourceConfig(path=str(path), **options)], seed=0, base_dir=base_dir)


def text_rows(count: int, domains: Sequence[str] = ("a",)) -> list[Row]:
    return [Row(None, f"text {i}", domains[i % len(domains)], None, str(i), f"f:{i + 1}") for i in range(count)]


# --- formats and places ----------------------------------------------------------------------


def test_jsonl_rows_keep_order_and_line_numbers_past_blank_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "one"}), "", "  ", json.dumps({"text": "zwei ü", "id": "x"})]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # with a byte-order mark
    first, second = load("a.jsonl", tmp_path)
    assert (first.text, first.id, first.where, first.domain) == ("one", "a.jsonl:1", f"{tmp_path}/a.jsonl:1", "a")
    assert (second.text, second.id, second.where) == ("zwei ü", "x", f"{tmp_path}/a.jsonl:4")


content = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
turns = st.lists(st.fixed_dictionaries({"role": content, "content": content}), min_size=1, max_size=3)


@given(rows=st.lists(turns, min_size=1, max_size=4), ascii_only=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_jsonl_round_trip(tmp_path: Path, rows: list[list[dict[str, str]]], ascii_only: bool) -> None:
    text = "\n".join(json.dumps({"messages": row}, ensure_ascii=ascii_only) for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8", newline="\n")
    read = load("rows.jsonl", tmp_path)
    assert [row.messages for row in read] == [tuple(Message(**turn) for turn in row) for row in rows]


def test_parquet_reads_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "domain": "a", "answer": "x", "other": 1}, {"messages": TURNS[:1], "domain": "b"}]
    write_lines(tmp_path / "j.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_jsonl, from_parquet = load("j.jsonl", tmp_path), load("p.parquet", tmp_path)
    facts = [(r.messages, r.domain, r.answer) for r in from_parquet]
    assert facts == [(r.messages, r.domain, r.answer) for r in from_jsonl]
    assert from_parquet[1].where == f"{tmp_path}/p.parquet:2"


def test_folder_is_read_sorted_and_deep_and_json_counts_only_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "b.jsonl", [{"text": "2"}])
    write_lines(tmp_path / "d" / "a" / "z.jsonl", [{"text": "1"}])
    write_lines(tmp_path / "d" / "labels.json", [["not", "rows"]])
    write_lines(tmp_path / "d" / ".cache" / "c.jsonl", [{"text": "hidden"}])
    rows = load("d", tmp_path)
    assert [(r.text, r.domain) for r in rows] == [("1", "z"), ("2", "b")]
    write_lines(tmp_path / "e" / "only.json", [{"text": "3"}])
    assert [r.text for r in load("e", tmp_path)] == ["3"]


def test_pattern_picks_one_split_and_folders_name_the_domains(tmp_path: Path) -> None:
    for domain in ("math", "code"):
        for split in ("train", "test"):
            write_lines(tmp_path / domain / f"{split}.jsonl", [{"text": f"{domain} {split}"}])
    for pattern in ("*/train.jsonl", str(tmp_path / "*" / "train.jsonl")):
        rows = load(pattern, tmp_path)
        assert [(r.text, r.domain) for r in rows] == [("code train", "code"), ("math train", "math")]
    shard = write_lines(tmp_path / "wiki" / "train-00000-of-00002.jsonl", [{"text": "w"}])
    assert load(shard, tmp_path)[0].domain == "wiki"


def test_folder_of_several_splits_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", [{"text": "1"}])
    write_lines(tmp_path / "d" / "test.jsonl", [{"text": "2"}])
    with pytest.raises(DataError, match=r"d: .*several splits \(test, train\).*such as d/\*\*/train.jsonl"):
        load("d", tmp_path)


# --- the hub ---------------------------------------------------------------------------------


def test_hub_layout_of_tulu_takes_source_as_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"id": f"flan_{i}", "messages": TURNS, "source": source} for i, source in enumerate(["flan_v2", "gsm"])]
    folder = tmp_path / "org" / "tulu" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    read = load("hf://org/tulu", tmp_path, domain_map={"flan_v2": "instructions"})
    assert [(r.id, r.domain) for r in read] == [("flan_0", "instructions"), ("flan_1", "gsm")]
    assert read[0].messages == (Message("user", "Hi"), Message("assistant", "Hello"))
    assert read[1].where == "hf://org/tulu[train]:1"
    with pytest.raises(DataError, match=r"hf://org/tulu \(split 'tset'\): cannot be loaded.*tset"):
        load("hf://org/tulu", tmp_path, split="tset")


def test_hub_names_reach_the_library_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        calls.append((path, name, split, revision))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("hf://org/name", tmp_path, revision="abc")[0].domain == "name"
    load("hf://org/name/subset", tmp_path, split="test")
    assert calls == [("org/name", None, "train", "abc"), ("org/name", "subset", "test", None)]


def test_empty_hub_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: [])
    with pytest.raises(DataError, match=r"hf://org/name.*the split is empty"):
        load("hf://org/name", tmp_path)


# --- limits ----------------------------------------------------------------------------------


def test_smaller_limits_are_subsets_of_larger_ones_in_file_order() -> None:
    rows = text_rows(60, "abc")
    drawn = [draw(rows, limit, None, seed=5) for limit in (3, 10, 30, 60, 99)]
    for smaller, larger in pairwise(drawn):
        assert set(smaller) <= set(larger)
    for limit, chosen in zip((3, 10, 30, 60, 60), drawn, strict=True):
        assert len(chosen) == limit
        assert chosen == [row for row in rows if row in chosen]
    per_domain = [draw(rows, None, limit, seed=5) for limit in (2, 7)]
    assert [row.domain for row in per_domain[0]].count("b") == 2
    assert set(per_domain[0]) < set(per_domain[1])


def test_limit_holds_beside_limit_per_domain() -> None:
    chosen = draw(text_rows(60, "abc"), 4, 2, seed=1)
    assert len(chosen) == 4
    assert max([row.domain for row in chosen].count(name) for name in "abc") <= 2


def test_draw_depends_on_seed_and_content_not_on_place() -> None:
    rows = text_rows(40)
    chosen = {row.text for row in draw(rows, 10, None, seed=0)}
    assert {row.text for row in draw(reversed(rows), 10, None, seed=0)} == chosen
    assert {row.text for row in draw(rows, 10, None, seed=1)} != chosen


def test_limit_of_a_source_is_drawn_with_the_seed(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(40)])
    source = SourceConfig(path="a.jsonl", limit=10)
    assert [r.text for r in load_rows([source], seed=3, base_dir=tmp_path)] == [
        r.text for r in draw(text_rows(40), 10, None, seed=3)
    ]


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"bad.jsonl:2: malformed JSON at column \d+"),
        (b"[1]", r"bad.jsonl:2: a JSON list; expected one object a line \(`jq"),
        (b"3", r"bad.jsonl:2: expected a JSON object, got 3"),
        (b'{"text": "\xff"}', r"bad.jsonl:2: not UTF-8 at byte 10"),
        (b'{"text": ' + b"9" * 5000 + b"}", r"bad.jsonl:2: JSON that cannot be read"),
        (b'{"txt": "a"}', r"bad.jsonl:2: column 'text' is missing"),
        (b'{"text": 5}', r"bad.jsonl:2: 'text' is the number 5; expected a string"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        load("bad.jsonl", tmp_path)


@pytest.mark.parametrize("blank", [b"", b"\n\n"])
def test_empty_file_is_refused(tmp_path: Path, blank: bytes) -> None:
    (tmp_path / "empty.jsonl").write_bytes(blank)
    with pytest.raises(DataError, match=r"empty.jsonl: the file is empty"):
        load("empty.jsonl", tmp_path)


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"trian.jsonl: no such file or folder.*Did you mean 'train.jsonl'\?"):
        load("trian.jsonl", tmp_path)


def test_unknown_type_empty_folder_and_empty_pattern_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"file type '.csv' is not known; expected one of .jsonl"):
        load("a.csv", tmp_path)
    with pytest.raises(DataError, match="no file here ends in one of"):
        find_files(str(tmp_path), tmp_path)
    with pytest.raises(DataError, match="no file here ends in one of"):
        find_files("*.jsonl", tmp_path)


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"p.parquet: cannot be read as Parquet"):
        load("p.parquet", tmp_path)


def test_named_format_and_columns_win(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"q": "1+1", "a": "2", "text": "t", "kind": "sum"}])
    columns = Columns(prompt="q", completion="a", domain="kind")
    (row,) = load("a.jsonl", tmp_path, format="prompt_completion", columns=columns)
    assert (row.prompt, row.completion, row.domain) == ("1+1", "2", "sum")
