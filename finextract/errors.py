"""What can be wrong with a checkpoint, a base or a request, as the method sees it.

FinextractError
├── RequestError            an argument that cannot be used, such as a missing caption
└── CheckpointError         the weights' own doing; another tool may skip the file and go on
    ├── PickledWeights      weights stored as a pickle, which can run code when opened
    ├── CorruptWeights      not a whole safetensors file
    ├── UnsupportedWeights  a kind, family or adapter that the method cannot scan yet
    └── BaseMismatch        the tuned weights do not fit the base model

Imports nothing but the standard library. Each message says what is wrong, where, and what to do next.
"""


class FinextractError(Exception):
    """Something a person can mend; printed without a traceback."""


class RequestError(FinextractError):
    """An argument that cannot be used."""


class CheckpointError(FinextractError):
    """The weights cannot be scanned, for a reason of their own."""


class PickledWeights(CheckpointError):
    """The weights are a pickle, which can run code when it is opened."""


class CorruptWeights(CheckpointError):
    """The file is not a whole safetensors file."""


class UnsupportedWeights(CheckpointError):
    """The method cannot scan this kind of weights yet."""


class BaseMismatch(CheckpointError):
    """The tuned weights do not fit the base model."""
