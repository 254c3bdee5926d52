"""The id of a configuration: what changes it, and what does not."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass

import pytest
import tomli_w

from scanner import config
from scanner.config import ScanConfig, config_id_of, sampling_id_of

OTHER = {
    "preset": "paper", "samples_per_round": 5,
    "guidance_scale": 2.5, "correction": -0.1, "samples_per_image": 7, "candidates_per_image": 3,
    "assumed_train_images": 5, "max_samples": 99, "steps": 8, "seed": 1, "alpha": 0.1, "tau_quantile": 0.9,
    "tau": 0.6, "relative_tau": 1.4, "descriptor": "another",
    "recover_captions": False, "caption_model": "0123456789abcdef",
    "screen": "off", "extract": "always", "screen_budget": 500,
    "corpora": {"mine": "reference:abc"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Extended(ScanConfig):
    """A configuration of a later version, with one more field."""

    precision: str = "auto"


def test_every_field_has_its_introduced_value() -> None:
    assert config.INTRODUCED.keys() == {f.name for f in dataclasses.fields(ScanConfig)} == OTHER.keys()
    never_none = {k for k, v in dataclasses.asdict(ScanConfig()).items() if v is not None}
    assert never_none == {k for k, v in config.INTRODUCED.items() if v is not None}


@pytest.mark.parametrize("field", OTHER)
def test_every_setting_makes_another_configuration(field: str) -> None:
    changed = ScanConfig(**{field: OTHER[field]})
    assert changed.config_id != ScanConfig().config_id
    assert (changed.sampling_id == ScanConfig().sampling_id) == (field in config.COMPARING)


def test_a_new_field_at_its_introduced_value_does_not_change_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ScanConfig(steps=8, corpora={"mine": "reference:abc"})
    monkeypatch.setitem(config.INTRODUCED, "precision", "auto")
    after = Extended(steps=8, corpora={"mine": "reference:abc"})
    assert "precision" in after.toml(), "the row keeps the full configuration"
    assert (after.config_id, after.sampling_id) == (before.config_id, before.sampling_id)
    assert dataclasses.replace(after, precision="float16").config_id != before.config_id


@pytest.mark.parametrize("field", OTHER)
def test_a_file_without_a_key_has_the_id_of_one_with_the_key_at_its_introduced_value(field: str) -> None:
    full = tomllib.loads(ScanConfig(steps=8, alpha=0.1).toml())
    introduced = {k: v for k, v in config.INTRODUCED.items() if v is not None}
    with_key = full | ({field: introduced[field]} if field in introduced else {})
    without_key = {k: v for k, v in with_key.items() if k != field}
    assert config_id_of(tomli_w.dumps(with_key)) == config_id_of(tomli_w.dumps(without_key))
    assert sampling_id_of(tomli_w.dumps(with_key)) == sampling_id_of(tomli_w.dumps(without_key))


def test_a_changed_default_makes_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True)
    class Later(ScanConfig):
        steps: int = 30

    assert Later().config_id != ScanConfig().config_id
    assert Later(steps=12).config_id == ScanConfig().config_id


def test_a_whole_number_is_the_same_setting_as_its_float() -> None:
    assert ScanConfig(guidance_scale=3).config_id == ScanConfig(guidance_scale=3.0).config_id


def test_the_row_of_a_configuration_gives_its_id() -> None:
    chosen = ScanConfig(steps=8, corpora={"b": "reference:1", "a": "background:2"})
    row = chosen.row()
    assert config_id_of(row.toml) == row.config_id == chosen.config_id
    assert ScanConfig(**tomllib.loads(row.toml)) == chosen
