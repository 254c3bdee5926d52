"""FineXtract: extract training images from personalised diffusion checkpoints by model guidance.

    from finextract import ExtractionSettings, extract_all, load_embedder, load_pair

    pair = load_pair(Path("base"), Path("tuned.safetensors"))
    extraction = extract_all(pair, "a photo of sks dog", 5, ExtractionSettings(), load_embedder())
    for clique in extraction.candidates:
        extraction.picture(clique.representative).show()

`extract` yields the rounds of an extraction one by one, and `conclude` makes an Extraction of the round at
which a caller stops. `audit` compares an extraction with known training images.

These names are imported when they are first used, so that `finextract.weights`, `finextract.metadata`,
`finextract.support` and `finextract.significance` stay free of torch.
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load_pair": "finextract.models.loading",
    "Pair": "finextract.models.base",
    "ExtractionSettings": "finextract.extract",
    "extract": "finextract.extract",
    "extract_all": "finextract.extract",
    "conclude": "finextract.extract",
    "audit": "finextract.audit",
    "load_embedder": "finextract.sscd",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'finextract' has no attribute {name!r}")
