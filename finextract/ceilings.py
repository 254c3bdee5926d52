"""The similarity that a perfect copy of a picture would have among a model's samples.

Everything that a latent diffusion model draws has passed its autoencoder, which does not return a picture as
it was: the smaller the model's size, the less so. R = pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finextract.framing import frame
from finextract.losses import ENCODED_AT_ONCE
from finextract.models.base import Model
from finextract.sscd import Embedder

FRAMINGS = ("squash", "centre")  # as trainers cut pictures to a model's size


def ceilings(model: Model, pictures: Sequence[Image.Image], embedder: Embedder) -> NDArray[np.float32]:
    """The similarity of each picture to its own reconstruction by the autoencoder, float32 [R].

    At the model's size, scaled as a whole or cut to its middle, whichever is more similar.
    """
    own = embedder.embed(pictures)
    best = np.full(len(pictures), -1, np.float32)
    for framing in FRAMINGS:
        pixels = np.stack([frame(picture, framing, model.image_size) for picture in pictures])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            made = [model.decode(model.encode(some)) for some in torch.split(images, ENCODED_AT_ONCE)]
        again = [Image.fromarray(image) for image in torch.cat(made).permute(0, 2, 3, 1).numpy()]
        best = np.maximum(best, (own * embedder.embed(again)).sum(axis=1))
    return best.clip(-1, 1)
