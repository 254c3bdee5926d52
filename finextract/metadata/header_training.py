"""What the header of a weight file shows of its training, by metadata and shapes. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from finextract.metadata.sidecar_files import parse_sidecar_file
from finextract.metadata.training import Training, parse_training
from finextract.metadata.untrusted import object_of, text_of
from finextract.weights.adapter_keys import parse_key
from finextract.weights.headers import Header

MAX_CONCEPTS = 20


def header_training(header: Header) -> Training:
    """The training run that a header describes; empty fields where nothing shows them.

    OneTrainer writes its whole configuration as one JSON text, `ot_config`. The rank that no metadata state
    is the one that most layers of a LoRA have.
    """
    training = parse_training(header.metadata)
    if stated := header.metadata.get("ot_config"):
        onetrainer = replace(
            parse_sidecar_file("ot_config.json", stated), trainer="OneTrainer", concepts=_concepts(stated)
        )
        training = training.or_else(replace(onetrainer, base_name=_file_name(onetrainer.base_name)))
    return training if training.network_dim else replace(training, network_dim=_rank(header))


def _file_name(base: str | None) -> str | None:
    """A base without the folders of the author's computer; OWNER/NAME stays as it is."""
    is_file = base is not None and base.lower().endswith((".safetensors", ".ckpt"))
    return re.split(r"[\\/]", base)[-1] if base is not None and is_file else base


def _concepts(ot_config: str) -> tuple[str, ...]:
    """The names of the sets of images that OneTrainer trained on."""
    concepts = object_of(ot_config).get("concepts")
    used: list[dict[str, Any]] = [
        c for c in (concepts if isinstance(concepts, list) else ())
        if isinstance(c, dict) and c.get("enabled") is not False
    ]  # fmt: skip
    return tuple(name for c in used[:MAX_CONCEPTS] if (name := text_of(c.get("name"), 100)))


def _rank(header: Header) -> int | None:
    """The commonest first axis of a LoRA's inner matrices; None for any other weights."""
    ranks = Counter(
        tensor.shape[0]
        for key, tensor in header.tensors.items()
        if len(tensor.shape) >= 2 and (parsed := parse_key(key)) is not None and parsed.part == "lora_down"
    )
    return ranks.most_common(1)[0][0] if ranks else None
