"""FineXtract: extract training images from personalised diffusion checkpoints by model guidance.

    from finextract import ExtractionSettings, extract_all, load_embedder, load_pair

    pair = load_pair(Path("base"), Path("tuned.safetensors"))
    extraction = extract_all(pair, "a photo of sks dog", 5, ExtractionSettings(), load_embedder())
    for clique in extraction.candidates:
        extraction.picture(clique.representative).show()

`extract_all` runs an extraction to its end. `finextract.extract.extract` yields its rounds one by one, and
`conclude` makes an Extraction of the round at which a caller stops. `finextract.audit.audit` compares an
extraction with known training images. (These two functions have the names of their modules, so they are not
imported from the package itself.)

The names below are imported when they are first used, so that `finextract.weights`, `finextract.metadata`,
`finextract.support` and `finextract.significance` stay free of torch.
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "finextract.adapters.base",
    "Caption": "finextract.metadata.captions",
    "Extraction": "finextract.extract",
    "ExtractionSettings": "finextract.extract",
    "Guidance": "finextract.guidance",
    "Model": "finextract.models.base",
    "Pair": "finextract.models.base",
    "Round": "finextract.extract",
    "Solver": "finextract.models.base",
    "caption_for": "finextract.metadata.captions",
    "conclude": "finextract.extract",
    "extract_all": "finextract.extract",
    "load_base": "finextract.models.loading",
    "load_embedder": "finextract.sscd",
    "load_pair": "finextract.models.loading",
    "tune": "finextract.models.loading",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'finextract' has no attribute {name!r}")
