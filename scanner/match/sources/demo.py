"""The background that comes with the package: 400 small pictures of clip art and emoji.

tests/demo_background.py made the shard; it holds their licences.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scanner.match.sources.base import Pictures
from scanner.match.sources.shards import shard_pictures

SHARD = Path(__file__).resolve().parent.parent / "demo_background.tar"


def demo_background() -> Pictures:
    """The pictures of the background that comes with the package."""
    return replace(shard_pictures(SHARD), named="the background of the demo")
