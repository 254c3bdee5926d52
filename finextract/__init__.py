"""What a personalised diffusion checkpoint was trained on, and what it gives back.

FineXtract extracts training images by model guidance:

    from finextract import ExtractionSettings, extract_all, load_embedder, load_pair

    pair = load_pair(Path("base"), Path("tuned.safetensors"))
    extraction = extract_all(pair, "a photo of sks dog", 5, ExtractionSettings(), load_embedder())
    for clique in extraction.candidates:
        extraction.picture(clique.representative).show()

`extract_all` runs an extraction to its end. `finextract.extract.extract` yields its batches one by one, and
`conclude` makes an Extraction of the batch at which a caller stops.

Membership asks whether pictures were trained on, by the losses of both models:

    from finextract import picture_of
    from finextract.membership import membership

    pictures = [picture_of(file) for file in sorted(Path("mine").iterdir())]
    answer = membership(pair, pictures)
    print([pictures[i] for i in answer.trained_on])

`finextract.audit.audit` has both answers for known training images. (The functions `extract`, `membership`
and `audit` have the names of their modules, so they are not imported from the package itself.)

The names below are imported when they are first used, so that `finextract.weights`, `finextract.metadata`,
`finextract.support`, `finextract.framing` and `finextract.significance` stay free of torch.
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "finextract.adapters.base",
    "BaseCache": "finextract.losses",
    "Caption": "finextract.metadata.captions",
    "Drawn": "finextract.extract",
    "Extraction": "finextract.extract",
    "ExtractionSettings": "finextract.extract",
    "Guidance": "finextract.guidance",
    "Membership": "finextract.membership",
    "MembershipSettings": "finextract.membership",
    "Model": "finextract.models.base",
    "Pair": "finextract.models.base",
    "Picture": "finextract.images",
    "Solver": "finextract.models.base",
    "caption_for": "finextract.metadata.captions",
    "conclude": "finextract.extract",
    "extract_all": "finextract.extract",
    "load_base": "finextract.models.loading",
    "load_embedder": "finextract.sscd",
    "load_pair": "finextract.models.loading",
    "picture_of": "finextract.images",
    "tune": "finextract.models.loading",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'finextract' has no attribute {name!r}")
