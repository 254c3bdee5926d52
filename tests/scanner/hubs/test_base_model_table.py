"""The table of base models in docs/formats.md says what the program does."""

from __future__ import annotations

from pathlib import Path

import base_model_table

ROOT = Path(__file__).resolve().parents[3]


def test_the_table_of_base_models_is_what_the_programs_own_tables_say() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.partition("\n## Base models of the hubs\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == base_model_table.table()
    assert len(base_model_table.BASES) == 21
