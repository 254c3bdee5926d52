"""A CLIP model of open_clip, which says how well phrases describe pictures. A caption is recovered with it.

It is a folder as open_clip stores it on a hub: open_clip_config.json, and the weights as safetensors. Nothing
is fetched and nothing is unpickled. N = pictures, P = phrases, D = embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.errors import RequestError
from finextract.images import flatten
from finextract.metadata.local_files import read_object
from finextract.text import first_line

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")  # the usual names
HOW_TO_GET_ONE = (
    "Name a folder such as this command makes: hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K "
    f"{CONFIG} {WEIGHTS[0]} --local-dir DIR"
)
_TOKENIZER_SETTINGS = ("clean", "reduction_mask")  # of open_clip's own tokenizer; none of them names a file


class CaptionModel:
    """A CLIP model in float32. Not thread-safe.

    Raises RequestError for a folder that is not such a model, or whose model needs further files from a hub.
    """

    def __init__(self, folder: Path, device: str = "cpu", batch_size: int = 32) -> None:
        import open_clip
        import torch

        weights, settings = _weights(folder), _settings(folder)
        tokenizer = settings["text_cfg"].get("tokenizer_kwargs") or {}
        try:
            # Not by create_model, which chooses a weight file by itself, pickles included.
            model: Any = open_clip.CLIP(**settings)
            open_clip.load_checkpoint(model, str(weights))
            preparation = {**_preprocessing(folder), "size": model.visual.image_size}
            self._prepare = open_clip.transform.image_transform_v2(
                open_clip.transform.PreprocessCfg(**preparation), is_train=False
            )
            own = {key: value for key, value in tokenizer.items() if key in _TOKENIZER_SETTINGS}
            self._tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length, **own)
        except Exception as error:  # open_clip and torch raise errors of any class for a wrong configuration
            raise _unusable(folder, first_line(error)) from error
        if model.vocab_size < self._tokenizer.vocab_size:
            raise _unusable(folder, f"it has {model.vocab_size} tokens, and not those of CLIP")
        self._model = model.eval().requires_grad_(False).to(device)
        self._device, self._batch_size, self._torch = device, batch_size, torch

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """PIL pictures of any mode and size -> float32 [N, D], L2-normalised."""
        prepared = [self._prepare(flatten(image)) for image in images]
        return self._embed(self._model.encode_image, prepared)

    def embed_phrases(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Phrases -> float32 [P, D], L2-normalised; too long a phrase is cut."""
        return self._embed(self._model.encode_text, list(self._tokenizer(list(phrases))))

    def _embed(self, encode: Any, inputs: list[Any]) -> NDArray[np.float32]:
        torch, size, found = self._torch, self._batch_size, []
        with torch.inference_mode():
            for at in range(0, len(inputs), size):
                batch = torch.stack(inputs[at : at + size]).to(self._device)
                found.append(encode(batch, normalize=True).float().cpu().numpy())
        result: NDArray[np.float32] = np.concatenate(found)
        return result


def caption_model_id(folder: Path) -> str:
    """What tells a caption model from others: the hash of its files, 16 hex digits. Imports no torch.

    Raises RequestError for a folder that is not such a model.
    """
    digest = hashlib.sha256()
    _settings(folder)
    for file in (folder / CONFIG, _weights(folder)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _settings(folder: Path) -> dict[str, Any]:
    """`model_cfg` of a folder's configuration. Raises RequestError."""
    settings = read_object(folder / CONFIG).get("model_cfg")
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(name), dict) for name in ("text_cfg", "vision_cfg")
    ):
        raise _unusable(folder, f"it has no {CONFIG} with a model's configuration")
    if any(str(name).startswith("hf_") for name in settings["text_cfg"]):
        raise _unusable(folder, "its text model or its tokenizer is not open_clip's own")
    if settings.get("custom_text") or "timm_model_name" in settings["vision_cfg"]:
        raise _unusable(folder, "its architecture is not open_clip's own CLIP")
    return settings


def _preprocessing(folder: Path) -> dict[str, Any]:
    """`preprocess_cfg` of a folder's configuration, which may be missing."""
    found = read_object(folder / CONFIG).get("preprocess_cfg")
    return found if isinstance(found, dict) else {}


def _weights(folder: Path) -> Path:
    """The weight file of a folder. Raises RequestError where there is none, or which one is not clear."""
    if not folder.is_dir():
        raise _unusable(folder, "it is no folder")
    files = sorted(folder.glob("*.safetensors"))
    named = [folder / name for name in WEIGHTS if folder / name in files]
    if not named and len(files) != 1:
        raise _unusable(
            folder,
            f"it holds {len(files)} .safetensors files" if files else "it holds no weights as safetensors",
        )
    return (named or files)[0]


def _unusable(folder: Path, why: str) -> RequestError:
    return RequestError(f"the caption model {folder} cannot be used: {why}.\n{HOW_TO_GET_ONE}")
