"""The folder of one run of `finextract audit` or `finextract extract`: images and result.json, private.

Recovered images may show people, so the folder has mode 0700 and its files 0600.
"""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from finextract.errors import RequestError
from finextract.text import first_line

RESULT = "result.json"


def new_folder(out: Path | None, checkpoint: Path, verb: str) -> Path:
    """Creates the folder of a run: `out`, or else finextract-out/CHECKPOINT/VERB-N with the next free N.

    Raises RequestError where `out` holds files already, since the images of two runs would be mixed, and
    where a folder cannot be created.
    """
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(out.iterdir()):
                raise RequestError(
                    f"{out} holds files already. Name a new or empty folder with --out: results of two runs "
                    "are not mixed."
                )
            return out
        path = checkpoint.resolve()
        parent = Path("finextract-out") / ((path.name if path.is_dir() else path.stem) or "checkpoint")
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in count(1):
            folder = parent / f"{verb}-{number}"
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            break
        return folder
    except OSError as error:
        place = error.filename or out or "finextract-out"
        raise RequestError(
            f"{place} cannot be created or read: {first_line(error)}. Name another folder with --out."
        ) from error


def save_image(picture: Image.Image, file: Path) -> None:
    """Writes a PNG file that only its owner can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        picture.save(stream, format="PNG")


def save_result(result: dict[str, Any], folder: Path) -> Path:
    """Writes result.json, what --json prints, and returns its path."""
    file = folder / RESULT
    with os.fdopen(
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as stream:
        json.dump(result, stream, indent=2)
        stream.write("\n")
    return file
