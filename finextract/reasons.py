"""The reasons for which a checkpoint was skipped or failed, as codes that can be counted.

A sentence explains one case to a person; the code beside it groups cases. The method and the service share
one enumeration, so that a code has one meaning everywhere. Imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReasonCode(StrEnum):
    """Why a checkpoint has no result. The values are stored, so their meaning must never change."""

    # The weights. Such a checkpoint is skipped.
    PICKLE = "pickle"  # stored as a pickle, which can run code when it is opened
    DANGEROUS_PICKLE = "dangerous_pickle"  # a pickle that did not pass the checks of --allow-pickle
    DAMAGED = "damaged"  # not a whole safetensors file, or numbers that are not finite
    NO_WEIGHTS = "no_weights"  # the entry holds no weight file
    UNSUPPORTED_KIND = "unsupported_kind"  # a VAE, a textual inversion, an adapter algorithm, ...
    UNSUPPORTED_FAMILY = "unsupported_family"  # a known model family that cannot be scanned yet
    UNKNOWN_FAMILY = "unknown_family"  # keys and shapes match no known model family
    UNSUPPORTED_INPUTS = "unsupported_inputs"  # the model takes more than a noisy latent: inpainting, ...
    UNSUPPORTED_LAYOUT = "unsupported_layout"  # a supported model in a file layout that cannot be read yet
    TOO_LARGE = "too_large"  # larger than --max-download, or a pickle larger than is ever converted
    # The base and the metadata. Such a checkpoint is skipped.
    BASE_UNKNOWN = "base_unknown"  # no metadata state the base model
    BASE_MISMATCH = "base_mismatch"  # the weights do not fit the base that is stated
    BASE_UNAVAILABLE = "base_unavailable"  # the base is removed, gated, or of a kind that cannot be a base
    IS_A_BASE = "is_a_base"  # the checkpoint is a base model itself
    CAPTION_UNKNOWN = "caption_unknown"  # of older versions: no metadata state the training caption
    # What the hub allows. Such a checkpoint is skipped.
    GATED = "gated"  # its licence must be accepted first
    LOGIN_REQUIRED = "login_required"  # a token is missing or not accepted
    EARLY_ACCESS = "early_access"  # paid or not yet public
    NOT_OFFERED = "not_offered"  # it can be used on the hub but not downloaded, or not by this account
    REAL_PERSON = "real_person"  # the hub marks it as showing a real person
    REMOVED = "removed"  # deleted, disabled, archived, private, or not published
    HUB_WARNING = "hub_warning"  # the hub's own scanner calls the file dangerous
    INVALID_ENTRY = "invalid_entry"  # a name, commit, address, size or SHA256 is missing or unusable
    # The surroundings. Such a checkpoint has failed and is tried again.
    HUB_UNREACHABLE = "hub_unreachable"
    RATE_LIMITED = "rate_limited"
    NOT_READY = "not_ready"  # the hub has not finished processing the upload
    CHANGED = "changed"  # the bytes are not those that were listed
    UNREADABLE = "unreadable"  # a local file that cannot be read, or written
    NO_SPACE = "no_space"  # the disk or the cache is full
    NO_ISOLATION = "no_isolation"  # this machine cannot isolate a process, as --allow-pickle needs
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"  # a model computed infinities or no numbers, such as an overflow in float16
    WORKER_DIED = "worker_died"
    TIMED_OUT = "timed_out"
    STORE_UNREACHABLE = "store_unreachable"
    INTERNAL_ERROR = "internal_error"

    @property
    def label(self) -> str:
        """The reason in a few words, for people."""
        return LABELS[self]

    @property
    def remedy(self) -> str:
        """What can be done about it, in a few words; docs/sources.md says more."""
        return next(remedy for codes, remedy in REMEDIES if self in codes)


LABELS = {
    ReasonCode.PICKLE: "stored as a pickle",
    ReasonCode.DANGEROUS_PICKLE: "a pickle that failed the safety checks",
    ReasonCode.DAMAGED: "damaged weights",
    ReasonCode.NO_WEIGHTS: "no weights",
    ReasonCode.UNSUPPORTED_KIND: "unsupported kind of weights",
    ReasonCode.UNSUPPORTED_FAMILY: "unsupported model family",
    ReasonCode.UNKNOWN_FAMILY: "unknown model family",
    ReasonCode.UNSUPPORTED_INPUTS: "a model that takes further inputs",
    ReasonCode.UNSUPPORTED_LAYOUT: "unsupported file layout",
    ReasonCode.TOO_LARGE: "larger than the download limit",
    ReasonCode.BASE_UNKNOWN: "base model not known",
    ReasonCode.BASE_MISMATCH: "weights do not fit the base model",
    ReasonCode.BASE_UNAVAILABLE: "base model not available",
    ReasonCode.IS_A_BASE: "a base model itself",
    ReasonCode.CAPTION_UNKNOWN: "training caption not known",
    ReasonCode.GATED: "gated: its licence must be accepted",
    ReasonCode.LOGIN_REQUIRED: "login required",
    ReasonCode.EARLY_ACCESS: "early access",
    ReasonCode.NOT_OFFERED: "not offered for download",
    ReasonCode.REAL_PERSON: "marked as showing a real person",
    ReasonCode.REMOVED: "removed or private",
    ReasonCode.HUB_WARNING: "reported as dangerous by the hub",
    ReasonCode.INVALID_ENTRY: "invalid entry",
    ReasonCode.HUB_UNREACHABLE: "the hub did not answer",
    ReasonCode.RATE_LIMITED: "limited by the hub",
    ReasonCode.NOT_READY: "not yet processed by the hub",
    ReasonCode.CHANGED: "changed since it was listed",
    ReasonCode.UNREADABLE: "unreadable local file",
    ReasonCode.NO_SPACE: "disk full",
    ReasonCode.NO_ISOLATION: "no process without network on this machine",
    ReasonCode.OUT_OF_MEMORY: "out of memory",
    ReasonCode.NOT_FINITE: "numbers that are not finite",
    ReasonCode.WORKER_DIED: "the worker process ended",
    ReasonCode.TIMED_OUT: "took too long",
    ReasonCode.STORE_UNREACHABLE: "the store did not answer",
    ReasonCode.INTERNAL_ERROR: "internal error",
}


_WEIGHTS = "ask the author for whole safetensors"
_ACCESS = "accept the terms on the hub, set HF_TOKEN or CIVITAI_TOKEN, or ask the author"
REMEDIES: tuple[tuple[tuple[ReasonCode, ...], str], ...] = (
    ((ReasonCode.PICKLE,), f"{_WEIGHTS}, or pass --allow-pickle"),
    ((ReasonCode.DANGEROUS_PICKLE, ReasonCode.DAMAGED, ReasonCode.NO_WEIGHTS), _WEIGHTS),
    (
        (
            ReasonCode.UNSUPPORTED_KIND, ReasonCode.UNSUPPORTED_FAMILY, ReasonCode.UNKNOWN_FAMILY,
            ReasonCode.UNSUPPORTED_INPUTS, ReasonCode.UNSUPPORTED_LAYOUT,
        ),
        "nothing; docs/formats.md lists what can be scanned",
    ),
    ((ReasonCode.TOO_LARGE,), "raise --max-download"),
    (
        (
            ReasonCode.BASE_UNKNOWN, ReasonCode.BASE_MISMATCH, ReasonCode.BASE_UNAVAILABLE,
            ReasonCode.IS_A_BASE,
        ),
        "pass --base, or a card that states base_model",
    ),
    ((ReasonCode.CAPTION_UNKNOWN,), "crawl again; it is sampled without a prompt now"),
    (
        (ReasonCode.GATED, ReasonCode.LOGIN_REQUIRED, ReasonCode.EARLY_ACCESS, ReasonCode.NOT_OFFERED),
        _ACCESS,
    ),
    ((ReasonCode.REAL_PERSON, ReasonCode.REMOVED, ReasonCode.HUB_WARNING), "nothing"),
    ((ReasonCode.INVALID_ENTRY,), "its author can mend the name, size or hash"),
    ((ReasonCode.HUB_UNREACHABLE,), "check the network and the endpoint; the next crawl tries again"),
    ((ReasonCode.RATE_LIMITED,), "wait, set the token, or use fewer --workers"),
    ((ReasonCode.NOT_READY, ReasonCode.CHANGED), "nothing; the next crawl tries again"),
    ((ReasonCode.UNREADABLE,), "check the file and its permissions"),
    ((ReasonCode.NO_SPACE,), "make room on the disk or in the cache folder"),
    ((ReasonCode.NO_ISOLATION,), "run scanner doctor: user namespaces are needed"),
    ((ReasonCode.OUT_OF_MEMORY,), "use fewer --workers, or a machine with more memory"),
    ((ReasonCode.NOT_FINITE,), "try --base with another copy, or a machine without a GPU"),
    (
        (ReasonCode.WORKER_DIED, ReasonCode.TIMED_OUT, ReasonCode.STORE_UNREACHABLE),
        "read the log of the scan in STORE/logs/",
    ),
    ((ReasonCode.INTERNAL_ERROR,), "read the log of the scan in STORE/logs/, and report it"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one checkpoint cannot be scanned."""

    reason_code: ReasonCode
    sentence: str  # for people; ends with a full stop

    def __str__(self) -> str:
        return self.sentence
