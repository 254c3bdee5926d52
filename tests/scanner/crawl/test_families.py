"""A crawl over checkpoints of several model families: each is fetched with its base, screened and sampled.

FLUX.1 is not among them: inspection knows it by the real width of its layers, which no small model has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import scanner
from servers.hub import Hub
from servers.trouble import write_card
from tiny.flow_pipelines import sd3_pipeline
from tiny.unet_pipelines import stable_diffusion_2, stable_diffusion_xl

from scanner.records import Checkpoint, Examination, Scan, Verdict
from scanner.store.store import Store

BIN = Path(sys.executable).parent
MAKERS = {
    "sd2": lambda seed: stable_diffusion_2(True, seed),
    "sdxl": lambda seed: stable_diffusion_xl(False, seed),
    "sd3": lambda seed: sd3_pipeline(),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A base of each family with random weights, and a checkpoint tuned from it with others."""
    folder = tmp_path_factory.mktemp("families")
    repos: dict[str, Path] = {}
    for family, make in MAKERS.items():
        base, tuned = folder / f"{family}-base", folder / family
        make(0).save_pretrained(base)
        write_card(tuned, base_model=f"lab/{family}", instance_prompt="a cat", tags=["dreambooth"])
        other = make(1)
        for part in other.components.values():
            if hasattr(part, "parameters"):
                for parameter in list(part.parameters())[:3]:
                    parameter.data.mul_(1.5)
        other.save_pretrained(tuned)
        repos |= {f"lab/{family}": base, f"o/{family}": tuned}
    with Hub(repos) as running:
        yield running


def test_a_checkpoint_of_each_family_is_fetched_with_its_base_screened_and_sampled(
    hub: Hub, zoo_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    pictures = sorted((zoo_path / "images/background").iterdir())
    for name, some, extra in (("mine", pictures[:3], []), ("other", pictures[3:60], ["--background"])):
        (tmp_path / name).mkdir()
        for picture in some:
            shutil.copy(picture, tmp_path / name)
        assert scanner("corpus", "add", name, tmp_path / name, "--store", store, *extra).returncode == 0
    done = subprocess.run(
        [BIN / "scanner", "crawl", "--source", "hf", "--limit", "50", "--store", store, "--workers", "1",
         "--samples-per-image", "1", "--assume-train-images", "2", "--steps", "2", "--screen-budget", "70",
         "--extract", "always"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = Store(store)
    families = {c.checkpoint_id: c.family for c in opened.select(Checkpoint) if c.repo.startswith("o/")}
    scans = {families[s.checkpoint_id]: s for s in opened.select(Scan) if s.checkpoint_id in families}
    assert scans.keys() == MAKERS.keys()
    for family, scan in scans.items():
        assert scan.verdict in (Verdict.NOTHING_FOUND, Verdict.FLAGGED), (family, scan.reason)
        assert scan.examined is Examination.BOTH, (family, scan.reason)
        assert scan.num_samples == 2
        assert scan.screen_evaluations > 0
