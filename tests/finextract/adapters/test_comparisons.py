"""Adapters of every kind and key style, compared with the tools that made them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path

import adapter_comparisons
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from finextract.adapters.base import Adapter
from finextract.adapters.merge import merge

ROOT = Path(__file__).resolve().parents[3]
ROUNDING = 1e-5  # of float32, through a whole network


@pytest.mark.parametrize("name", adapter_comparisons.CASES)
def test_an_adapter_is_merged_as_the_tool_that_made_it_computes_it(name: str) -> None:
    assert adapter_comparisons.difference(name) < ROUNDING


@pytest.mark.parametrize("name", adapter_comparisons.CASES)
def test_a_weight_that_is_merged_on_use_is_the_merged_one_bit_for_bit_and_the_layer_keeps_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def both(layers: dict[str, nn.Module], adapters: Iterable[Adapter]) -> None:
        adapters = list(adapters)
        once, on_use = copy.deepcopy(layers), copy.deepcopy(layers)
        merge(once, adapters)
        merge(on_use, adapters, on_use=True)
        for layer, (tensor, own) in ((n, p) for n in layers for p in layers[n].named_parameters()):
            assert torch.equal(getattr(on_use[layer], tensor), getattr(once[layer], tensor))
            if tensor == "weight":
                changed = parametrize.is_parametrized(on_use[layer])
                stored = "parametrizations.weight.original" if changed else tensor
                assert torch.equal(dict(on_use[layer].named_parameters())[stored], own)
            compared.append(layer)
        merge(layers, adapters)

    monkeypatch.setattr(adapter_comparisons, "merge", both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter_comparisons.CASES[name][1]()
    assert compared


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
