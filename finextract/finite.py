"""Numbers that must be finite, because everything that is computed from others would look like an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from finextract.errors import NotFinite


def require_finite(values: Tensor, what: str) -> Tensor:
    """The values; raises NotFinite where one of them is infinite or no number. `what` names them, plural."""
    if bool(torch.isfinite(values).all()):
        return values
    if values.device.type == "cuda":
        why = "the weights are damaged, or numbers overflow in the half precision of this GPU"
        remedy = "Try it on a machine without a GPU, which computes in float32."
    else:
        why = "the weights of the checkpoint or of its base are damaged"
        remedy = "Fetch both again, or pass another copy of the base."
    raise NotFinite(f"{what} are not finite: {why}. {remedy}")
