"""The effective configuration of a scan: what shapes its result, and nothing else.

Two scans with the same `config_id` are comparable, and a checkpoint scanned under one is not scanned again.
The references belong to it: a corpus that grew makes another configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import tomli_w

from scanner.records import ConfigRow, now

COMPARING = ("alpha", "tau", "tau_quantile", "corpora")  # the keys that come after sampling
DESCRIPTOR = "sscd_disc_mixup-int8"


@dataclass(frozen=True, slots=True)
class ScanConfig:
    """What a scan does. None means the method's published preset for the checkpoint's kind."""

    guidance_scale: float | None = None  # w' of the paper
    correction: float | None = None  # k of the paper
    samples_per_image: int = 50  # the paper draws 50 * N0 samples
    candidates_per_image: int = 2  # candidates kept, in multiples of N0
    assumed_train_images: int = 10  # N0 where the checkpoint does not tell it
    max_samples: int = 1000  # however many images the metadata claims
    steps: int = 50
    seed: int = 0
    alpha: float = 0.05  # false-discovery level of a flag
    tau_quantile: float = 0.99  # of the background's nearest-neighbour similarities
    tau: float = 1.0  # the similarity that a flag needs, as that quantile came out
    descriptor: str = DESCRIPTOR
    corpora: dict[str, str] = field(default_factory=dict)  # name -> digest of its references and of its role

    def toml(self) -> str:
        """The configuration as TOML, keys sorted; what is None is left out."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return tomli_w.dumps(dict(sorted(values.items())))

    @property
    def config_id(self) -> str:
        """The hash of the TOML text, 16 hex digits."""
        return hashlib.sha256(self.toml().encode()).hexdigest()[:16]

    @property
    def sampling_id(self) -> str:
        """Of what shapes the samples and the candidates alone."""
        return sampling_id(self.toml())

    def row(self) -> ConfigRow:
        """The configuration as a row of the store."""
        return ConfigRow(self.config_id, self.toml(), now())

    def num_samples_images(self, told: int | None) -> int:
        """N0 to sample for: as told, or assumed, and never past `max_samples`."""
        count = told if told is not None else self.assumed_train_images
        return max(1, min(count, self.max_samples // self.samples_per_image))


def sampling_id(toml: str) -> str:
    """What a configuration, as TOML, says of sampling, hashed: without what samples are compared with."""
    values = {k: v for k, v in tomllib.loads(toml).items() if k not in COMPARING}
    return hashlib.sha256(tomli_w.dumps(values).encode()).hexdigest()[:16]


def default_cache() -> Path:
    """Where downloads go: $FINEXTRACT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("FINEXTRACT_CACHE") or platformdirs.user_cache_dir("finextract"))


def default_store() -> str:
    """Where the store is when nobody says: $FINEXTRACT_STORE, or the user's data folder."""
    return os.environ.get("FINEXTRACT_STORE") or platformdirs.user_data_dir("finextract")
