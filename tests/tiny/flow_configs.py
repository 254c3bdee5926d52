"""The configuration files of Stable Diffusion 3 medium, 3.5 medium, 3.5 large, FLUX.1 dev and schnell.

They are those of the program, below finextract/published.
"""

from __future__ import annotations

import json
from typing import Any

from finextract.single_files import PUBLISHED, published_config

type Configs = dict[str, dict[str, Any]]

TRANSFORMERS: Configs = {
    name: published_config(name, "transformer/config.json")
    for name in ("sd3-medium", "sd35-medium", "sd35-large", "flux-dev", "flux-schnell")
}
CLIP_L = published_config("flux-dev", "text_encoder/config.json")
CLIP_L_PROJECTED = published_config("sd3-medium", "text_encoder/config.json")
CLIP_G = published_config("sd3-medium", "text_encoder_2/config.json")
T5 = published_config("flux-dev", "text_encoder_2/config.json")
VAE = published_config("sd3-medium", "vae/config.json")


def pipeline_configs(name: str) -> Configs:
    """The configuration files of a published pipeline, by their place in the pipeline's folder."""
    files = sorted((PUBLISHED / name).glob("*/*.json"))
    return {file.relative_to(PUBLISHED / name).as_posix(): json.loads(file.read_text()) for file in files}


def model_index(name: str) -> dict[str, Any]:
    """The model_index.json of a published pipeline."""
    return published_config(name, "model_index.json")
