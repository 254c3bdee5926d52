"""The training caption of a checkpoint, and where it was found. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from finextract.errors import CheckpointError
from finextract.metadata.cards import Card
from finextract.metadata.header_training import header_training
from finextract.metadata.local_files import read_card, read_sidecar_files
from finextract.metadata.prompts import exceeds_clip
from finextract.metadata.sidecar_files import parse_sidecar_files
from finextract.metadata.training import Training
from finextract.weights.files import component_paths, find_weights
from finextract.weights.headers import read_header

NO_TRAINING = Training()


class CaptionOrigin(StrEnum):
    """Where a caption was found. After GIVEN, in the order in which the places are asked."""

    GIVEN = "given"  # by a person
    CARD = "card"  # the model card's instance_prompt, or the sentences of the training scripts' template
    TRIGGER_WORDS = "trigger_words"  # of a hub's entry, or of a file that a download tool wrote
    METADATA = "metadata"  # the training metadata in the header of the weight file
    SIDECAR = "sidecar"  # the configuration of the training run, as a file beside the weights
    RECOVERED = "recovered"  # nowhere: it was guessed, and the pair of models bore it out
    NONE = "none"  # nowhere: the text is empty


@dataclass(frozen=True, slots=True)
class Caption:
    """The text to sample with. An empty text samples unconditionally."""

    text: str
    origin: CaptionOrigin
    score: float | None = None  # of a recovery: of its caption, or of its best phrase where none is above 1

    @property
    def exceeds_clip(self) -> bool:
        """Whether the end of the text has certainly no effect, since CLIP reads 75 tokens."""
        return exceeds_clip(self.text)


NO_CAPTION = Caption("", CaptionOrigin.NONE)


def find_caption(
    card: Card, header: Training = NO_TRAINING, sidecar: Training = NO_TRAINING
) -> Caption | None:
    """The caption that a card, a header's metadata and the sidecar files state; None where none does."""
    stated = (
        (card.instance_prompt, CaptionOrigin.CARD),
        (card.trigger_words, CaptionOrigin.TRIGGER_WORDS),
        (header.caption, CaptionOrigin.METADATA),
        (sidecar.caption, CaptionOrigin.SIDECAR),
    )
    return next((Caption(text, origin) for text, origin in stated if text), None)


def local_caption(checkpoint: Path) -> Caption | None:
    """The caption that the files of a local checkpoint state; None where none does.

    `checkpoint` is a weight file or a folder. Raises CheckpointError where it holds no weights.
    """
    weights = find_weights(checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    file = "" if weights == folder else weights.relative_to(folder).as_posix()
    return find_caption(
        read_card(folder, file),
        _header_training(weights),
        parse_sidecar_files(read_sidecar_files(folder)),
    )


def local_training(checkpoint: Path) -> Training:
    """The training run as the files of a local checkpoint describe it; its header is believed first.

    `checkpoint` is a weight file or a folder. Raises CheckpointError where it holds no weights.
    """
    weights = find_weights(checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return _header_training(weights).or_else(parse_sidecar_files(read_sidecar_files(folder)))


def caption_for(checkpoint: Path, given: str | None) -> Caption:
    """The given caption (an empty one too), or the one that the checkpoint's files state, or an empty one.

    Raises CheckpointError where the checkpoint holds no weights.
    """
    if given is not None:
        return Caption(given, CaptionOrigin.GIVEN)
    return local_caption(checkpoint) or NO_CAPTION


def _header_training(weights: Path) -> Training:
    """What the header of a weight file, or of a pipeline's denoiser, states of the training."""
    files = [weights]
    if not weights.is_file():
        files = (component_paths(weights, "unet") or component_paths(weights, "transformer"))[:1]
    try:
        return header_training(read_header(files[0])) if files else NO_TRAINING
    except CheckpointError:  # loading the weights raises the same error, with its reason
        return NO_TRAINING
