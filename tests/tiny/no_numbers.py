"""Models of any size that take no memory and little time: their weights have shapes, and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made within is on torch's meta device."""
    with torch.device("meta"), not_initialised():
        yield


@contextmanager
def not_initialised() -> Iterator[None]:
    """The weights of what is made within get no first numbers, which takes longer than all the rest."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield
