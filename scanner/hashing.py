"""SHA256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finextract.regular_files import open_regular


def sha256_of(path: Path) -> str:
    """The SHA256 of a regular file, 64 hex digits, read in pieces. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
