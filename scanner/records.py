"""The rows of the store. A record is frozen, and its fields say what they mean.

The store derives its Parquet schema from these classes: a field's annotation is its column type.
Times are timezone-aware UTC. An embedding is an L2-normalised descriptor, float32 [D]; `descriptor`
names the model that made it, and embeddings of two descriptors are never compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from secrets import token_hex

from finextract.reasons import ReasonCode as ReasonCode  # exported: the desk uses it


class Verdict(StrEnum):
    """The result of one scan. A checkpoint without a match is called "nothing found", never clean."""

    FLAGGED = "flagged"
    NOTHING_FOUND = "nothing_found"
    SKIPPED = "skipped"  # for a reason of the checkpoint; not tried again under the same configuration
    FAILED = "failed"  # for a reason of the network or this program; the next crawl tries again


class Ground(StrEnum):
    """What a flag claims. The two are different claims, and are never mixed."""

    TRAINED_ON = "trained_on"  # about training: a reference was among the training images, by the losses
    GIVES_BACK = "gives_back"  # about what anybody can generate: an extracted image matches a reference


class Examination(StrEnum):
    """How a checkpoint was looked at before its verdict."""

    SAMPLED = "sampled"  # extraction alone
    SCREENED = "screened"  # membership alone: nothing was sampled
    BOTH = "screened_and_sampled"

    @property
    def label(self) -> str:
        """For people."""
        return _EXAMINATIONS[self]


_EXAMINATIONS = {
    Examination.SAMPLED: "sampled; not screened",
    Examination.SCREENED: "screened; not sampled",
    Examination.BOTH: "screened and sampled",
}

STATED_CAPTION = "stated"  # the origin of a caption that the checkpoint's card, metadata or files state


class ReviewDecision(StrEnum):
    """A reviewer's decision about a match or a scan."""

    CONFIRM = "confirm"
    DISMISS = "dismiss"
    UNSURE = "unsure"


class EventKind(StrEnum):
    """What a reviewer did in one event of the decision log."""

    DECIDE = "decide"
    NOTE = "note"
    WITHDRAW = "withdraw"


class InspectionStatus(StrEnum):
    """Whether a checkpoint can be scanned, as far as inspection knows."""

    UNKNOWN = "unknown"  # listed, not inspected
    READY = "ready"
    SKIPPED = "skipped"  # for a reason of the checkpoint; see `reason`
    UNAVAILABLE = "unavailable"  # the source did not answer; the next crawl inspects it again


class BaseOrigin(StrEnum):
    """Where a checkpoint's base model was found."""

    GIVEN = "given"  # the user's --base
    HASH = "hash"  # the base file's SHA256 in the metadata, found on a hub
    CARD = "card"  # the model card, or a hub's own entry
    CONFIG = "config"  # a configuration file beside the weights
    METADATA = "metadata"  # the base file's name in the metadata
    FAMILY = "family"  # the usual base of the family, because nothing else states one


class Role(StrEnum):
    """What a corpus is for."""

    REFERENCE = "reference"  # images that their owner looks for
    BACKGROUND = "background"  # similar images that no checkpoint was trained on: the null
    # The owner's own images that were never published, so that none was trained on: a better null.
    UNSEEN = "unseen"


def now() -> datetime:
    """The current time, timezone-aware UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new random id, 32 hex digits."""
    return token_hex(16)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published fine-tuned model, as a source listed it."""

    checkpoint_id: str  # see scanner.hashing.identify
    source: str  # "hf", "folder:PATH"
    repo: str  # OWNER/NAME on a hub, the relative path in a folder
    revision: str  # commit that the listing pinned; "" where the source has none
    file: str  # the single weight file inside the repo, or "" where the whole folder is the checkpoint
    url: str  # its page in a browser
    sha256: str | None  # of `file`, as the source states it
    size_bytes: int  # of all weights that a scan downloads
    kind: str  # "full", "lora", or "unknown"
    family: str  # "sd1", "sdxl", ..., or "unknown"
    base: str | None  # OWNER/NAME or path of the base model; `base_origin` says where it was found
    caption: str | None  # the training caption, from the card or the metadata; "" where they state none
    num_train_images: int | None  # N0, from the metadata
    license: str | None
    created_at: datetime | None
    listed_at: datetime
    raw: str  # the source's own entry, JSON
    inspection_status: InspectionStatus = InspectionStatus.UNKNOWN
    reason: str = ""  # why it is skipped or unavailable
    base_origin: BaseOrigin | None = None
    training: str = "{}"  # what the metadata state of the training, JSON: repeats, steps, resolution, ...
    public_images: int = 0  # training images that the author published with it
    reason_code: ReasonCode | None = None  # `reason` as a code that can be counted


@dataclass(frozen=True, slots=True)
class Listing:
    """The progress of the listing of one query; an interrupted listing resumes from it."""

    listing_id: str  # the hash of its source and query
    source: str
    started_at: datetime
    updated_at: datetime
    listed: int  # entries so far
    position: dict[str, str]  # stream of the source -> the page that holds its next entry
    finished: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """One attempt at one checkpoint under one configuration."""

    scan_id: str
    checkpoint_id: str
    config_id: str
    run_id: str  # the crawl that made the attempt
    verdict: Verdict
    reason: str  # why it was skipped or failed; "" otherwise
    stage: str  # the last stage that it reached: inspect, fetch, load, screen, sample, embed, cliques, match
    started_at: datetime
    finished_at: datetime
    caption: str | None = None  # the caption that the samples were drawn with
    base: str | None = None  # the base that was used
    guidance_scale: float | None = None  # w' of the paper; None where the samples have several
    correction: float | None = None  # k of the paper; None where the samples have several
    num_samples: int = 0
    num_candidates: int = 0
    num_references: int = 0  # references that the candidates were compared with
    num_background: int = 0  # background images behind the null
    best_similarity: float | None = None  # of any reference to any candidate, cosine in [-1, 1]
    tau: float | None = None  # the similarity that is enough for a flag, set from the background alone
    alpha: float | None = None  # the false-discovery level a flag needs
    q_value: float | None = None  # the least corrected p-value among its matches
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    device: str = ""  # "cpu", or the GPU's name
    precision: str = ""  # of the weights: float32, float16, bfloat16
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that shape the result
    seed: int = 0  # of the first sample
    reason_code: ReasonCode | None = None  # `reason` as a code that can be counted; None without a reason
    grounds: str = ""  # of a flag: a Ground, or both joined by "+", "trained_on+gives_back"; "" otherwise
    examined: Examination | None = None  # None where it was not scanned, and in rows from before screening
    trained_on: int = 0  # references that were trained on
    membership_q: float | None = None  # the least corrected p-value among the scan's memberships
    screen_evaluations: int = 0  # of the tuned model, by the screen
    screen_base_evaluations: int = 0  # of the base model, without those that were shared with other scans
    sample_evaluations: int = 0  # of either model, by the sampling
    screened_references: int = 0  # references whose losses were evaluated; the others fell to the prefilter
    background_unlike: bool = False  # the background is of another kind than the references
    standing_references: int = 0  # of the screened ones, those that stood out
    compared_references: int = 0  # of these, those that the budget allowed to compare with their variants
    sampled_for: int = 0  # N0: the training images that the samples were drawn for; 0 in older rows
    sampled_for_stated: bool = False  # whether the metadata state that number, or it was assumed
    rounds: int = 0  # of samples; 0 in older rows
    caption_origin: str = ""  # "stated", "recovered", "none"; "" in older rows, and where nothing was sampled
    caption_score: float | None = None  # of a recovery's best phrase; above 1 it was used
    caption_evaluations: int = 0  # of either model, by the recovery of the caption
    base_sha256: str = ""  # of the base's weights, as `weights_id` of scanner.hashing; "" in older rows

    @property
    def grounds_of_flag(self) -> tuple[Ground, ...]:
        """The grounds of a flag; empty without one."""
        return tuple(Ground(part) for part in self.grounds.split("+") if part)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One clique's representative: an image that the checkpoint was probably trained on."""

    candidate_id: str
    scan_id: str
    seed: int  # the sample's seed
    clique_size: int
    clique_similarity: float  # mean pairwise similarity inside the clique; 1.0 for a clique of one
    image_sha256: str  # names the image file in the store
    descriptor: str
    embedding: tuple[float, ...]
    guidance_scale: float | None = None  # of the sample; None in older rows, whose scan has it
    correction: float | None = None
    log_ratio: float | None = None  # of its losses: the base's over the tuned model's; None in older rows


@dataclass(frozen=True, slots=True)
class Match:
    """A reference and the candidate that is most similar to it, with the evidence."""

    match_id: str
    scan_id: str
    candidate_id: str
    corpus: str
    reference_id: str
    similarity: float  # cosine in [-1, 1], higher is closer
    null_similarity: float | None  # the highest of any image of the null to the same candidates; None without
    p_value: float  # conformal, against the null; 1 without
    q_value: float  # Benjamini-Hochberg over the references of the scan
    flagged: bool  # similarity >= needed, q_value <= alpha, and is_nearest
    nearest_other: float | None = None  # of the reference to any other picture; None where q > alpha
    needed: float | None = None  # the similarity that a flag of the reference needs; None: the scan's tau
    is_nearest: bool | None = None  # whether the candidate is nearer to no other picture; None as above


@dataclass(frozen=True, slots=True)
class Membership:
    """What the models' losses say about one reference, or about a corpus as a whole: was it trained on?

    A scan keeps rows for the references that stood out, and for each corpus.
    """

    membership_id: str
    scan_id: str
    corpus: str
    reference_id: str  # "" for the corpus as a whole
    log_ratio: float  # log of the base model's loss over the tuned model's; of a corpus its mean
    margin: float | None  # log-ratio in its best framing, less the mean of the reference's own variants
    framed_log_ratio: float | None  # in its best framing, the mean over the timesteps
    variant_log_ratios: tuple[float, ...]  # in that framing: the null of the reference; empty for a corpus
    framing: str  # the way of cutting the picture that fits best, such as "squash"; "" for a corpus
    framings_tried: int
    background_p: float | None  # conformal p of the log-ratio against the background
    p_value: float  # of the margin against its own variants, corrected for the framings
    q_value: float  # Benjamini-Hochberg over all references and corpora of the scan
    trained_on: bool
    num_pictures: int = 1  # of a corpus: how many were compared with their mirror images
    margin_low: float | None = None  # of a corpus: the 95 % interval of its margin
    margin_high: float | None = None
    num_background: int = 0  # background images that the log-ratio was compared with
    background_highest: float | None = None  # the highest log-ratio among them
    heat: tuple[float, ...] = ()  # log-ratios of 8 x 8 parts of the framed picture, row by row; or empty


@dataclass(frozen=True, slots=True)
class Decision:
    """One event of the decision log; scanner.store.decisions.fold computes which events stand."""

    decision_id: str
    subject_id: str  # a match_id, a membership_id or a scan_id
    event: EventKind
    decision: ReviewDecision | None  # of a decide event; None otherwise
    note: str  # of a note event, where an empty text removes the note; "" otherwise
    withdraws: str | None  # of a withdraw event: the decision_id of the event that no longer counts
    reviewer: str  # the author of this event
    decided_at: datetime  # the time of this event, never before the events that its author knew of


@dataclass(frozen=True, slots=True)
class Reference:
    """One image of a corpus."""

    reference_id: str  # unique inside its corpus: the image file's SHA256
    corpus: str
    role: Role
    path: str  # where it came from: an absolute path, an address, or FILE#MEMBER of a shard or a table
    sha256: str
    width: int  # pixels
    height: int  # pixels
    descriptor: str
    embedding: tuple[float, ...]
    added_at: datetime
    image_sha256: str | None = None  # names its copy in the store, at most 1,024 pixels; None in older rows


@dataclass(frozen=True, slots=True)
class ConfigRow:
    """One effective configuration as TOML, every setting included; see scanner.config for its id."""

    config_id: str
    toml: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Night:
    """The result of one nightly crawl."""

    date: str  # 2026-11-24; its id
    started_at: datetime
    finished_at: datetime | None  # None while it runs, and if it did not complete
    sources: str  # their specs, JSON
    config_id: str
    listed: int  # entries
    verdicts: dict[str, float]  # number of this night's scans, by verdict
    flagged: str  # ids of the checkpoints that were flagged, JSON
    left: int  # checkpoints without a verdict when it ended
    worker_seconds: float
    downloaded_bytes: int
    missed: str | None = None  # sources that could not be listed: spec -> why, JSON
    recorded_at: datetime | None = None  # when this row was written


@dataclass(frozen=True, slots=True)
class Removal:
    """What a person removed from the store for good, without its content."""

    removal_id: str
    what: str  # "checkpoint", "corpus" or "older_than"
    name: str  # the checkpoint's id, the corpus's name, or the time before which pictures were recovered
    removed: dict[str, float]  # how much: rows by table, and "images", "files"
    reviewer: str  # who removed it
    removed_at: datetime


Record = (
    Checkpoint | Listing | Scan | Candidate | Membership | Match | Decision | Reference | ConfigRow | Night
    | Removal
)  # fmt: skip
