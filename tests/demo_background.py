"""Makes scanner/match/demo_background.tar from pictures of the zoo that nothing was trained on.

    python tests/demo_background.py

The shard goes with the package, so that `scanner corpus add NAME --from-demo` needs no network. It has 400 of
the 1,080 pictures, chosen by the SHA256 of their names, with their licences.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "tests/zoo/images"
SHARD = ROOT / "scanner/match/demo_background.tar"
PICTURES = 400


def main() -> None:
    """Writes the shard; the same pictures give the same bytes."""
    files = sorted((IMAGES / "background").iterdir(), key=lambda f: hashlib.sha256(f.name.encode()).digest())
    chosen = sorted(files[:PICTURES])
    names = {file.name for file in chosen}
    rows = (IMAGES / "LICENSES.md").read_text().splitlines(keepends=True)
    listed = [row for row in rows if "/" not in row or row.split("|")[1].strip().rpartition("/")[2] in names]
    with tarfile.open(SHARD, "w", format=tarfile.USTAR_FORMAT) as shard:
        _put(shard, "NOTICE.md", (IMAGES / "NOTICE.md").read_bytes())
        _put(shard, "LICENSES.md", "".join(listed).encode())
        for file in chosen:
            _put(shard, file.name, file.read_bytes())
    print(f"{SHARD.relative_to(ROOT)}: {len(chosen)} pictures, {SHARD.stat().st_size:,} bytes")


def _put(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
