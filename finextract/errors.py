"""The errors of the method: about a checkpoint, a base model or a request.

FinextractError
├── RequestError            an argument that cannot be used, such as a missing caption
├── ImageError              a file that is not an image, is damaged or is too large
├── NotFinite               a model computed infinities or no numbers; a crawl records `failed`
└── CheckpointError         the weights cannot be scanned; a crawl skips them and continues
    ├── PickledWeights      weights stored as a pickle, which can run code when opened
    ├── CorruptWeights      not a whole safetensors file
    ├── UnsupportedWeights  a kind, family or adapter that the method cannot scan yet
    └── BaseMismatch        the tuned weights do not fit the base model

Imports nothing beyond the standard library and the reason codes. Each message says what is wrong, where,
and what to do next.
"""

from typing import ClassVar

from finextract.reasons import ReasonCode


class FinextractError(Exception):
    """An error that a user can correct; printed without a traceback."""


class RequestError(FinextractError):
    """An argument that cannot be used."""


class ImageError(FinextractError):
    """A file that cannot be used as an image. The message is a predicate: it follows the name of the file."""


class NotFinite(FinextractError):
    """A model computed numbers that are not finite, so that nothing can be concluded from them."""

    reason_code: ClassVar[ReasonCode] = ReasonCode.NOT_FINITE


class CheckpointError(FinextractError):
    """The weights cannot be scanned, whatever the surroundings.

    `reason_code` is the error's own where it is given, else that of its class.
    """

    default_code: ClassVar[ReasonCode] = ReasonCode.DAMAGED

    def __init__(self, message: str, reason_code: ReasonCode | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code or self.default_code


class PickledWeights(CheckpointError):
    """The weights are a pickle, which can run code when it is opened."""

    default_code = ReasonCode.PICKLE


class CorruptWeights(CheckpointError):
    """The file is not a whole safetensors file."""

    default_code = ReasonCode.DAMAGED


class UnsupportedWeights(CheckpointError):
    """The method cannot scan this kind of weights yet."""

    default_code = ReasonCode.UNSUPPORTED_KIND


class BaseMismatch(CheckpointError):
    """The tuned weights do not fit the base model."""

    default_code = ReasonCode.BASE_MISMATCH
