"""FineXtract: extract training images from personalised diffusion checkpoints by model guidance.

    from finextract import load_pair, extract, ExtractionSettings, load_embedder

The names above are imported when they are first used, so `finextract.weights.formats`,
`finextract.metadata.cards` and `finextract.significance` stay free of torch.
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
