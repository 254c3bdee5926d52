"""The registry opens each known source by its spec, and knows which query options its listing supports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scanner.errors import ConfigError
from scanner.hubs.registry import (
    QUERY_OPTIONS,
    SOURCE_TYPES,
    USAGES,
    check_query_options,
    open_source,
    source_type,
)

VALUES = {"since": "2026-11-24", "filters": ("anime",), "base_model": "o/base"}


def test_every_source_type_opens_a_source_whose_name_is_a_spec_of_that_type(tmp_path: Path) -> None:
    for known in SOURCE_TYPES:
        spec = f"{known.scheme}:{tmp_path}" if known.takes_place else known.scheme
        source = open_source(spec)
        assert source_type(source.name) is known
        assert known.usage.startswith(known.scheme)
        assert known.usage in USAGES


@pytest.mark.parametrize("spec", ["hf:somewhere", "folder", "folder:", "civitai:1", "", "ftp://example.org"])
def test_a_spec_that_names_no_source_is_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"Known sources: hf \(.*, civitai \(.*, folder:PATH \("):
        open_source(spec)


def test_a_query_option_is_refused_exactly_where_the_source_does_not_support_it(tmp_path: Path) -> None:
    for known in SOURCE_TYPES:
        spec = f"{known.scheme}:{tmp_path}" if known.takes_place else known.scheme
        check_query_options(spec, since=None, filters=(), base_model=None)
        for name, option in QUERY_OPTIONS.items():
            if name in known.query_options:
                check_query_options(spec, **{name: VALUES[name]})  # type: ignore[arg-type]
            else:
                with pytest.raises(
                    ConfigError, match=f"{option} is not supported by --source {known.scheme}"
                ):
                    check_query_options(spec, **{name: VALUES[name]})  # type: ignore[arg-type]


def test_the_registry_loads_no_source_before_one_is_opened() -> None:
    child = (
        "import sys, scanner.hubs.registry\n"
        "sys.exit(any(m.startswith(('scanner.hubs.huggingface', 'scanner.hubs.civitai', 'httpx2'))"
        " for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 0
