"""What weights are: their kind, their model family and the style of their names. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "full", "unet", "lora", "lycoris", "dora", "textual_inversion", "vae", "text_encoder", "controlnet",
    "unknown",
]  # fmt: skip
TuningKind = Literal["full", "lora"]  # how a model was fine-tuned: all of its weights, or by an adapter
Family = Literal["sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "z_image", "unknown"]
Style = Literal["ldm", "diffusers", "kohya", "peft", "xlabs", "unknown"]

ADAPTER_KINDS: frozenset[Kind] = frozenset({"lora", "lycoris", "dora"})


@dataclass(frozen=True, slots=True)
class WeightsKind:
    """Kind, family and style of weights. `unknown` where keys and shapes do not determine them."""

    kind: Kind
    family: Family
    style: Style
    has_text_encoder: bool
    detail: str = ""  # for people: the algorithm ("LoHa"), the variant ("refiner"), the encoder ("T5")
    algorithms: tuple[str, ...] = ()  # of an adapter, sorted: ("LoHa",), ("DoRA", "LoRA"); see adapter_keys
    model: str = ""  # with the family "unknown", the model's own name: "Chroma", or the several that fit
    # With the family "unknown", the families that an adapter may be for; see `settled`.
    fits: tuple[Family, ...] = ()
    integers: str = ""  # the safetensors dtype of weights that are quantised to integers: "I8", "U8"

    @property
    def is_adapter(self) -> bool:
        """Whether the weights change a base model's layers, by whatever algorithm."""
        return self.kind in ADAPTER_KINDS

    @property
    def tuning(self) -> TuningKind:
        """How a model that such weights belong to was fine-tuned."""
        return "lora" if self.is_adapter else "full"


def settled(kind: WeightsKind, families: Iterable[str | None]) -> WeightsKind:
    """The kind with the first of the stated families that fits, where keys and shapes fit several.

    `families` are those of the bases that are stated for the weights, the most reliable first.
    """
    for family in families:
        if family in kind.fits:
            return replace(kind, family=family, model="", fits=())
    return kind
