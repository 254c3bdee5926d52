"""Adapters of every kind and key style, compared with the tools that made them."""

from __future__ import annotations

from pathlib import Path

import adapter_comparisons
import pytest

ROOT = Path(__file__).resolve().parents[3]
ROUNDING = 1e-5  # of float32, through a whole network


@pytest.mark.parametrize("name", adapter_comparisons.CASES)
def test_an_adapter_is_merged_as_the_tool_that_made_it_computes_it(name: str) -> None:
    assert adapter_comparisons.difference(name) < ROUNDING


def test_the_table_of_formats_has_every_comparison_with_its_tool_and_its_result() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.partition("## Adapters: checked against")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]
    stated = {row[0]: row[1:] for row in rows[2:]}
    assert list(stated) == list(adapter_comparisons.CASES)
    for name, (tools, _) in adapter_comparisons.CASES.items():
        assert stated[name][0] == adapter_comparisons.tools_with_versions(tools)
        # Another processor rounds otherwise.
        assert adapter_comparisons.difference(name) <= 10 * float(stated[name][1]) + 1e-6
