"""The files of a version on Civitai: which of them is the checkpoint, and what the site states about it.

Also readers of single fields, for which a wrong type counts as missing. Nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from finextract.reasons import Reason, ReasonCode
from finextract.weights.formats import PICKLE_SUFFIXES
from scanner.hubs.fields import MAX_SIZE
from scanner.hubs.layout import is_safe
from scanner.text import printable

WEIGHTS = ("Model", "Pruned Model", "UNet", "Diffusion Model")  # types of files
MAX_ID = 1 << 53

Json = dict[str, Any]


def choose(
    files: Iterator[Json], *, allow_pickle: bool = False
) -> tuple[Json | None, list[Json], Reason | None]:
    """The file of a version that is the checkpoint, the others, and why there is none; None where there is.

    Safetensors first, a pickle only where that is allowed; pruned before full, because the weights are the
    same; then the file that the site shows first.
    """
    listed = list(files)
    weights = [f for f in listed if f.get("type") in WEIGHTS]
    pickles = [f for f in weights if is_pickle(f)]
    good = [f for f in weights if _is_safetensors(f)] or (pickles if allow_pickle else [])
    clean = [f for f in good if warning_of(f) is None]
    if clean:
        file = min(clean, key=_preference)
        return file, [f for f in listed if f is not file], None
    if good:
        return None, listed, warning_of(good[0])
    if pickles:
        name = printable(str(pickles[0].get("name")), 200)
        sentence = (
            f"it holds its weights as a pickle ({name}), which can run code when it is opened; it was not "
            "opened. Ask its author for safetensors, or see --allow-pickle."
        )
        return None, listed, Reason(ReasonCode.PICKLE, sentence)
    sentence = "it holds no weights: no safetensors, and no pickle either."
    return None, listed, Reason(ReasonCode.NO_WEIGHTS, sentence)


def _preference(file: Json) -> tuple[bool, bool, bool]:
    return file["type"] not in WEIGHTS[:2], not _is_pruned(file), file.get("primary") is not True


def warning_of(file: Json) -> Reason | None:
    """The warning of the site's own scans; None where they give none."""
    for scan, what in (("virusScanResult", "virus"), ("pickleScanResult", "pickle")):
        if file.get(scan) == "Danger":
            sentence = f"Civitai's {what} scan calls its file dangerous; it was not fetched."
            return Reason(ReasonCode.HUB_WARNING, sentence)
    return None


def metadata_of(file: Json) -> Json:
    """Its format, its size (full or pruned), its precision; of training data, the number of images."""
    metadata = file.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _suffix(file: Json) -> str:
    return PurePosixPath(str(file.get("name"))).suffix.lower()


def is_pickle(file: Json) -> bool:
    """Whether a file is a pickle, by its name or its stated format."""
    return _suffix(file) in PICKLE_SUFFIXES or metadata_of(file).get("format") == "PickleTensor"


def _is_safetensors(file: Json) -> bool:
    named = _suffix(file) == ".safetensors"
    return not is_pickle(file) and (named or metadata_of(file).get("format") == "SafeTensor")


def _is_pruned(file: Json) -> bool:
    return metadata_of(file).get("size") == "pruned" or file["type"] == "Pruned Model"


def kept_name(file: Json, version_id: int | None) -> str:
    """The name under which a file is stored: its own, where that is a safe name with the right suffix."""
    name, suffixes = file.get("name"), PICKLE_SUFFIXES if is_pickle(file) else {".safetensors"}
    if is_safe(name) and "/" not in name and not name.startswith(".") and _suffix(file) in suffixes:
        return name
    return f"{version_id or 0}-{as_id(file.get('id')) or 0}{min(suffixes)}"


def sha256_of_file(file: Json) -> str | None:
    """The SHA256 that the site states for a file, lower case."""
    hashes = file.get("hashes")
    stated = hashes.get("SHA256") if isinstance(hashes, dict) else None
    return stated.lower() if isinstance(stated, str) and re.fullmatch("[0-9a-fA-F]{64}", stated) else None


def size_of_file(file: Json) -> int:
    """Bytes, as near as the site states them (some sizes are rounded); 0 where it states none."""
    kilobytes = file.get("sizeKB")
    if isinstance(kilobytes, bool) or not isinstance(kilobytes, int | float):
        return 0
    return round(kilobytes * 1024) if 0 <= kilobytes <= MAX_SIZE / 1024 else 0


def download_query(file: Json) -> dict[str, str]:
    """The query that selects this file of its version, whatever format an account prefers."""
    stated = {"type": file.get("type")} | {k: metadata_of(file).get(k) for k in ("format", "size", "fp")}
    query = {k: v for k, v in stated.items() if isinstance(v, str) and v.isprintable() and len(v) < 50}
    file_id = as_id(file.get("id"))
    return query | ({"fileId": str(file_id)} if file_id else {})


def dicts(value: object, limit: int) -> Iterator[Json]:
    """The objects in a list, at most `limit` of them; none where it is not a list."""
    return (v for v in value[:limit] if isinstance(v, dict)) if isinstance(value, list) else iter(())


def as_id(value: object) -> int | None:
    """A positive whole number, also as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        value = int(value)
    return value if type(value) is int and 0 < value < MAX_ID else None


def text(value: object, limit: int = 1_000) -> str | None:
    """A text on one line, or None for none."""
    return printable(value.strip(), limit) or None if isinstance(value, str) else None
