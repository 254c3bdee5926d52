"""docs/columns.md has every column with its type; the examples of docs/store.md give what the views give."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import types
import typing
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from filled_store import Crawl

from scanner.records import ReviewDecision, Verdict
from scanner.store.compaction import compact
from scanner.store.decision_views import DECISION_VIEWS
from scanner.store.store import Store
from scanner.store.tables import TABLES

DOCS = Path(__file__).resolve().parents[3] / "docs"
TYPES = {
    str: "string", int: "int64", float: "double", bool: "bool", datetime: "timestamp",
    tuple[float, ...]: "list of float32", dict[str, float]: "map of string to double",
    dict[str, str]: "map of string to string",
}  # fmt: skip
OF_DUCKDB = {
    "VARCHAR": "string",
    "DOUBLE": "double",
    "BOOLEAN": "bool",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
}
LIBRARY = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
ROW = re.compile(r"\| `(\w+)` \| ([a-z0-9 ]+) \| ?(.*?) ?\|")


def documented() -> dict[str, list[tuple[str, str, str]]]:
    """The rows (column, type, meaning) below each heading."""
    sections = re.split(r"^## (\w+)$", (DOCS / "columns.md").read_text(), flags=re.MULTILINE)[1:]
    return {
        name: [m.groups() for line in text.splitlines() if (m := ROW.fullmatch(line))]  # type: ignore[misc]
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def type_of(annotation: Any) -> str:
    """The type of a field as the page writes it."""
    if isinstance(annotation, types.UnionType):
        (inner,) = (a for a in typing.get_args(annotation) if a is not type(None))
        return f"{type_of(inner)} or null"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "string"
    return TYPES[annotation]


def test_the_page_has_every_table_and_view() -> None:
    assert documented().keys() == {*TABLES.values(), *DECISION_VIEWS}


@pytest.mark.parametrize("record_type", TABLES, ids=TABLES.values())
def test_every_column_of_a_table_is_documented_with_its_type_and_meaning(record_type: type) -> None:
    rows = documented()[TABLES[record_type]]
    hints = typing.get_type_hints(record_type)
    assert [(name, kind) for name, kind, _ in rows] == [
        (field.name, type_of(hints[field.name])) for field in dataclasses.fields(record_type)
    ]
    assert [name for name, _, meaning in rows if not meaning] == []


@pytest.mark.parametrize("view", DECISION_VIEWS)
def test_every_column_of_a_view_is_documented_with_its_type(store: Store, view: str) -> None:
    columns = store.query(f"SELECT column_name, column_type FROM (DESCRIBE {view})")
    assert [(name, kind.removesuffix(" or null")) for name, kind, _ in documented()[view]] == [
        (row["column_name"], OF_DUCKDB[row["column_type"]]) for row in columns
    ]


@pytest.fixture
def crawl(store: Store, tmp_path: Path) -> Crawl:
    """Scans in compacted files and in others, with a failed attempt after a verdict."""
    (tmp_path / "mine").mkdir()
    made = Crawl(store, tmp_path / "mine")
    first = made.flagged("anna/style", (0.81, 0.4), 0.004)
    made.scan("kim/plain", Verdict.NOTHING_FOUND)
    made.scan("lee/broken", Verdict.FAILED, reason="the hub did not answer")
    list(compact(store))
    made.flagged("ben/hats", (0.9,), 0.01)
    late = made.scans["ben/hats"].finished_at
    store.append([
        dataclasses.replace(first, scan_id="again", verdict=Verdict.FAILED, finished_at=late, reason="lost")
    ])  # fmt: skip
    made.decide(first.scan_id, ReviewDecision.CONFIRM, "rosa")
    return made


def examples() -> list[str]:
    """The examples of which the libraries are installed."""
    text = (DOCS / "store.md").read_text()
    section = text[text.index("## Reading the store from other programs") :]
    found = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(found) == 3
    return [code for code in found if all(map(importlib.util.find_spec, LIBRARY.findall(code)))]


@pytest.mark.parametrize("code", examples(), ids=lambda code: code.split()[1])
def test_an_example_of_the_page_gives_what_the_view_gives(crawl: Crawl, code: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(code.replace("STORE/", f"{crawl.store.root}/"), "store.md", "exec"), names)
    expected = {
        row["verdict"]: row["n"]
        for row in crawl.store.query("SELECT verdict, count(*) AS n FROM scans GROUP BY verdict")
    }
    assert expected == {"flagged": 2, "nothing_found": 1, "failed": 1}
    assert names["verdicts"] == expected
