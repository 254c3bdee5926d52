"""The effective configuration of a scan: every setting that affects its result, and no other.

Scans with the same `config_id` are comparable, and a checkpoint that has a verdict under a configuration is
not scanned again under it. The references belong to the configuration: a corpus with new images makes another
one.

The id omits every key that has the value it had when it was introduced. So a new key, at its introduced
value, leaves all ids as they were, and no checkpoint is sampled again because of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import tomli_w

from scanner.records import ConfigRow, Role, now

# The keys that do not affect the samples of a checkpoint.
COMPARING = ("alpha", "tau", "relative_tau", "tau_quantile", "corpora", "screen", "extract", "screen_budget")
DESCRIPTOR = "sscd_disc_mixup-int8"


@dataclass(frozen=True, slots=True)
class ScanConfig:
    """How a checkpoint is scanned. None means the preset for the checkpoint's kind, or of a flow model.

    A new field needs its line in `INTRODUCED`, with the value under which a scan gives the results that it
    gave before the field existed. Only a field that was introduced with None may ever be None.
    """

    preset: str = "portfolio"  # of finextract.extract: "portfolio", "paper", or "single"
    guidance_scale: float | None = None  # w' of the paper, as the only strength
    correction: float | None = None  # k of the paper
    samples_per_image: int = 50  # at most; the paper draws 50 * N0 samples
    samples_per_round: int = 10  # times N0
    candidates_per_image: int = 2  # candidates kept, in multiples of N0
    assumed_train_images: int = 10  # N0 where the metadata do not state it
    max_samples: int = 1000  # of a checkpoint, whatever number of images the metadata state
    steps: int = 12
    seed: int = 0
    alpha: float = 0.05  # false-discovery level of a flag
    tau_quantile: float = 0.99  # of the background's nearest-neighbour similarities
    tau: float = 1.0  # the similarity that is enough for a flag: the value of that quantile
    relative_tau: float | None = None  # times a reference's similarity to any other picture: enough as well
    descriptor: str = DESCRIPTOR
    recover_captions: bool = True  # where nothing states one; it shares the samples with the empty prompt
    caption_model: str = ""  # what helps to recover them: its id (finextract.caption_model); "" for none
    screen: str = "first"  # membership before sampling: "first", "only" (nothing is sampled), or "off"
    extract: str = "flagged"  # sample what the screen names ("flagged"), everything ("always"), or "never"
    screen_budget: int = 2000  # evaluations of the tuned model that a screen may take
    corpora: dict[str, str] = field(default_factory=dict)  # name -> digest of its references and of its role

    def toml(self) -> str:
        """The full configuration as TOML, keys sorted; a key that is None is left out."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return tomli_w.dumps(_normalised(values))

    @property
    def config_id(self) -> str:
        """The id of the configuration, 16 hex digits; see `config_id_of`."""
        return config_id_of(self.toml())

    @property
    def sampling_id(self) -> str:
        """The id of the part that affects samples and candidates; see `sampling_id_of`."""
        return sampling_id_of(self.toml())

    def row(self) -> ConfigRow:
        """The configuration as a row of the store, with its full TOML."""
        return ConfigRow(self.config_id, self.toml(), now())

    @property
    def is_screened(self) -> bool:
        """Whether the screen runs."""
        return self.screen != "off"

    def is_sampled(self, *, named: bool) -> bool:
        """Whether a checkpoint is sampled; `named` is the screen's answer, True without a screen."""
        if self.screen == "only" or self.extract == "never":
            return False
        return named or self.extract == "always"

    @property
    def has_null(self) -> bool:
        """Whether its corpora hold a background or unseen works; True while it has no corpora yet."""
        return not self.corpora or any(
            not stated.startswith(f"{Role.REFERENCE.value}:") for stated in self.corpora.values()
        )

    @property
    def what_flags(self) -> str:
        """What a flag needs, by its grounds, in a sentence."""
        needs, unsure = [], ""
        if self.is_screened:
            needs.append(f"it was trained on a reference (q <= {self.alpha:g})")
        if self.is_sampled(named=True) and not self.has_null:
            unsure = " Without a background, what it gives back is shown as similar and is not flagged."
        elif self.is_sampled(named=True):
            needed = f"similarity >= {self.tau:.2f}"
            if self.relative_tau is not None:
                needed += ", or down to half of that where it resembles no other picture"
            needs.append(f"it gives one back ({needed}; q <= {self.alpha:g})")
        return f"A checkpoint is flagged if {', or '.join(needs)}.{unsure}" if needs else unsure.strip()

    def num_samples_images(self, stated: int | None) -> int:
        """The N0 to sample for: as the metadata state it, or assumed; limited by `max_samples`."""
        count = stated if stated is not None else self.assumed_train_images
        return max(1, min(count, self.max_samples // self.samples_per_image))


# The value of each key when it was introduced; None for a key that was absent. A line is never changed: what
# may change later is the default of the field.
INTRODUCED: dict[str, Any] = {
    "preset": "single",
    "samples_per_round": 10,
    "guidance_scale": None,
    "correction": None,
    "samples_per_image": 50,
    "candidates_per_image": 2,
    "assumed_train_images": 10,
    "max_samples": 1000,
    "steps": 50,
    "seed": 0,
    "alpha": 0.05,
    "tau_quantile": 0.99,
    "tau": 1.0,
    "relative_tau": None,
    "descriptor": "sscd_disc_mixup-int8",
    "recover_captions": False,
    "caption_model": "",
    "screen": "off",
    "extract": "flagged",
    "screen_budget": 2000,
    "corpora": {},
}
_FLOATS = frozenset(f.name for f in dataclasses.fields(ScanConfig) if "float" in str(f.type))


def scan_config_of(toml: str) -> ScanConfig:
    """The configuration that a row of the store states; a key that is absent has its introduced value."""
    names = {f.name for f in dataclasses.fields(ScanConfig)}
    stated = INTRODUCED | tomllib.loads(toml)
    return ScanConfig(**{name: value for name, value in stated.items() if name in names})


def config_id_of(toml: str) -> str:
    """The id of a configuration, as TOML: the hash of the keys that differ from `INTRODUCED`, 16 hex digits.

    A key that is absent counts as one at its introduced value, so the TOML that an earlier version wrote has
    the same id as the one that this version writes for the same settings.
    """
    return _id_of(tomllib.loads(toml))


def sampling_id_of(toml: str) -> str:
    """`config_id_of` without the keys that do not affect the samples, such as the corpora."""
    return _id_of({k: v for k, v in tomllib.loads(toml).items() if k not in COMPARING})


def _id_of(values: dict[str, Any]) -> str:
    changed = {k: v for k, v in _normalised(values).items() if k not in INTRODUCED or v != INTRODUCED[k]}
    return hashlib.sha256(tomli_w.dumps(changed).encode()).hexdigest()[:16]


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Sorted by key, with a number of a field of real numbers as a float: 3 and 3.0 are one setting."""
    return {
        k: float(v) if k in _FLOATS else dict(sorted(v.items())) if isinstance(v, dict) else v
        for k, v in sorted(values.items())
    }


def default_cache() -> Path:
    """The folder of downloads: $FINEXTRACT_CACHE, or a folder in the user's cache folder."""
    return Path(os.environ.get("FINEXTRACT_CACHE") or platformdirs.user_cache_dir("finextract"))


def default_store() -> str:
    """The default store: $FINEXTRACT_STORE, or a folder in the user's data folder."""
    return os.environ.get("FINEXTRACT_STORE") or platformdirs.user_data_dir("finextract")
