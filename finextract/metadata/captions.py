"""The training caption of a checkpoint, where its author tells it. Imports no torch.

Sources, in this order: the model card's `instance_prompt`, then kohya's training metadata in the header.
"""

from __future__ import annotations

from pathlib import Path

from finextract.errors import CheckpointError, RequestError
from finextract.metadata.cards import parse_card, parse_training
from finextract.weights.formats import read_header


def caption_from_metadata(weights: Path) -> str | None:
    """The caption that a card or metadata beside the weights tells; None where neither does."""
    folder = weights if weights.is_dir() else weights.parent
    card = folder / "README.md"
    if card.is_file():
        prompt = parse_card(card.read_text(encoding="utf-8", errors="replace")).instance_prompt
        if prompt:
            return prompt
    for file in [weights] if weights.is_file() else sorted(folder.glob("*.safetensors")):
        try:
            caption = parse_training(read_header(file).metadata).caption
        except CheckpointError:
            continue
        if caption:
            return caption
    return None


def caption_for(weights: Path, given: str | None) -> str:
    """The given caption (the empty one too), or the told one.

    Raises RequestError where there is neither.
    """
    caption = caption_from_metadata(weights) if given is None else given
    if caption is None:
        raise RequestError(
            f"{weights} tells no training caption: there is no instance_prompt in a README.md beside it, and "
            "no ss_tag_frequency in its metadata.\nPass --caption TEXT (an empty one guides unconditionally)."
        )
    return caption
