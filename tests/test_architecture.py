"""The structure of the packages, as docs/architecture.md describes it. `lint-imports` holds the layers."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("finextract", "scanner", "tui")
MAX_LINES = 350
MAX_FLAT_MODULES = 12


def test_no_circle_of_imports_exists_between_files() -> None:
    """Imports for type checking alone count too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other in a circle: {' -> '.join(error.args[1])}")


def test_no_module_is_longer_than_one_person_holds_in_mind() -> None:
    lines = {
        path: len(path.read_text().splitlines()) for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }
    too_long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count >= MAX_LINES}
    assert not too_long


def test_few_modules_lie_flat_in_the_service() -> None:
    assert len(list((ROOT / "scanner").glob("*.py"))) <= MAX_FLAT_MODULES
