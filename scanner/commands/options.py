"""Options that several verbs share, and types of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from scanner.config import ScanConfig, default_store
from scanner.errors import ConfigError
from scanner.hubs.registry import supporting
from scanner.settings import SharedOption
from scanner.units import parse_size

if TYPE_CHECKING:
    from scanner.crawl.delivery import Notify
    from scanner.crawl.service import CrawlOptions

DEFAULTS = ScanConfig()
PAPER_STEPS = 50  # of finextract.extract, which needs torch


class Size(click.ParamType[int]):
    """A size such as "2GB"; its value is a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


SIZE = Size()


class GpuShare(click.FloatRange):
    """The GPUs of a worker: 0, a part of one, or a whole number of them, as Ray takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        share: float = super().convert(value, param, ctx)
        if share > 1 and not share.is_integer():
            self.fail(f"{value} is neither a part of a GPU nor a whole number of them.", param, ctx)
        return share


store_option = click.option(
    "--store", envvar="FINEXTRACT_STORE", default=default_store, metavar="DIR",
    help="The folder of the store, or s3://BUCKET/PREFIX.  [default: $FINEXTRACT_STORE, or a folder in the "
    "user's data folder]",
)  # fmt: skip

# What a crawl lists and how it scans, in the order of `scanner crawl --help`.
_SCAN_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--filter", "filters"), {
        "multiple": True, "metavar": "TAG",
        "help": "List the entries with this tag, instead of the tags of fine-tuned models. Given several "
        f"times, an entry must have all tags. For {' and '.join(supporting('filters'))}.",
    }),
    (("--base-model",), {
        "metavar": "OWNER/NAME", "help": "List only what was tuned from this base model. For "
        f"{' and '.join(supporting('base_model'))}.",
    }),
    (("--corpus", "corpora"), {
        "multiple": True, "metavar": "NAME",
        "help": "Compare with this corpus or background. May be given several times.  [default: all]",
    }),
    (("--base",), {
        "metavar": "OWNER/NAME",
        "help": "The base model of checkpoints that state none, or a folder or file that holds it. For a "
        "folder: source it is the base of all checkpoints.",
    }),
    (("--max-download",), {
        "default": "10GB", "show_default": True, "metavar": "SIZE", "type": SIZE,
        "help": "Skip checkpoints that are larger.",
    }),
    (("--cache-size", "cache_bytes"), {
        "default": "50GB", "show_default": True, "metavar": "SIZE", "type": SIZE,
        "help": "The size of the download cache, base models included. The least recently used files are "
        "removed first.",
    }),
    (("--preset",), {
        "type": click.Choice(["portfolio", "paper"]), "default": DEFAULTS.preset, "show_default": True,
        "help": "How to sample: in rounds over several strengths of guidance, as long as they pay, or as "
        "published, with all samples of 50 steps at one strength.",
    }),
    (("--samples-per-image",), {
        "type": click.IntRange(1), "default": DEFAULTS.samples_per_image, "show_default": True,
        "help": "Samples to generate for each training image; at most, where they are drawn in rounds.",
    }),
    (("--assume-train-images", "assumed_train_images"), {
        "type": click.IntRange(1), "default": DEFAULTS.assumed_train_images, "show_default": True,
        "metavar": "N0", "help": "The number of training images where the metadata do not state it.",
    }),
    (("--steps",), {
        "type": click.IntRange(1, 1000),
        "help": f"Sampling steps.  [default: {DEFAULTS.steps}; {PAPER_STEPS} with --preset paper]",
    }),
    (("--guidance-scale",), {
        "type": float, "metavar": "W",
        "help": "The guidance scale w', as the only strength.  [default: 1, 2, 3 and the preset]",
    }),
    (("--correction",), {
        "type": float, "metavar": "K",
        "help": "The correction term k.  [default: -0.02 for full weights, 0 for LoRA]",
    }),
    (("--seed",), {
        "type": click.IntRange(0), "default": DEFAULTS.seed, "show_default": True,
        "help": "The seed of the first sample.",
    }),
    (("--alpha",), {
        "type": click.FloatRange(0, 1, min_open=True), "default": DEFAULTS.alpha, "show_default": True,
        "help": "The false-discovery level: a flag needs a corrected p-value (q) of at most this.",
    }),
    (("--caption-model",), {
        "type": click.Path(file_okay=False, resolve_path=True), "metavar": "DIR",
        "help": "A CLIP model of open_clip that helps to guess captions that nothing states: a folder with "
        "open_clip_config.json and the weights as safetensors, on every machine of a crawl.  "
        "[default: none]",
    }),
    (("--screen",), {
        "type": click.Choice(["first", "only", "off"]), "default": DEFAULTS.screen, "show_default": True,
        "help": "Ask the models' losses which references a checkpoint was trained on: before sampling, "
        "instead of it, or not at all.",
    }),
    (("--extract",), {
        "type": click.Choice(["flagged", "always", "never"]), "default": DEFAULTS.extract,
        "show_default": True,
        "help": "Which checkpoints to sample after the screen: those that it names (flagged), all, or none.",
    }),
    (("--screen-budget",), {
        "type": click.IntRange(1), "default": DEFAULTS.screen_budget, "show_default": True, "metavar": "N",
        "help": "Evaluations of a checkpoint's model that its screen may take.",
    }),
    (("--keep-weights",), {"is_flag": True, "help": "Keep downloaded checkpoints after their scan."}),
    (("--allow-pickle",), {
        "is_flag": True,
        "help": "Convert pickled checkpoints that pass every check, in an isolated process, and scan them. "
                "The isolation relies on the Linux kernel; where it is not possible no pickle is opened.",
    }),
    (("--ray-address",), {
        "metavar": "ADDRESS",
        "help": "The address of a running Ray cluster.  [default: start Ray on this machine]",
    }),
    (("--workers",), {
        "type": click.IntRange(1),
        "help": "The number of scans at the same time.  [default: one for each GPU, or for each core; on a "
        "cluster also for nodes that its autoscaler may add]",
    }),
    (("--gpus-per-worker",), {
        "type": GpuShare(0), "metavar": "N",
        "help": "The GPUs of a scan: 0.5 for half of one, 0 for a CPU core.  [default: a part, by "
        "its memory and the model family; on a cluster without a GPU workers wait for a node that has one]",
    }),
)  # fmt: skip
_SCAN_SETTINGS = ("preset", "samples_per_image", "assumed_train_images", "steps", "guidance_scale",
                  "correction", "seed", "alpha", "screen", "extract", "screen_budget")  # fmt: skip


def scan_options(*, hidden: bool = False) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """Adds the options that `crawl_options` reads. Their defaults come from [crawl] in scanner.toml."""

    def add(function: click.decorators.FC) -> click.decorators.FC:
        for names, given in reversed(_SCAN_OPTIONS):
            option = click.option(*names, cls=SharedOption, section="crawl", hidden=hidden, **given)
            function = option(function)
        return function

    return add


def crawl_options(given: dict[str, Any], **others: Any) -> CrawlOptions:
    """The options of a crawl from the values of `scan_options`; `others` are further fields."""
    from scanner.crawl.service import CrawlOptions

    if given["screen"] == "off" and given["extract"] == "never":
        raise ConfigError("--screen off and --extract never leave nothing to do. Use one of them.")
    settings = {name: given[name] for name in _SCAN_SETTINGS}
    if settings["steps"] is None:
        settings["steps"] = PAPER_STEPS if settings["preset"] == "paper" else DEFAULTS.steps
    config = ScanConfig(**settings)
    fields = {name: value for name, value in given.items() if name not in _SCAN_SETTINGS}
    return CrawlOptions(**fields, config=config, notify=notify_setting(), **others)


def notify_setting() -> Notify | None:
    """Who is told of new flags, by [notify] in scanner.toml. Raises ConfigError."""
    from scanner.crawl.delivery import Notify

    context = click.get_current_context(silent=True)
    given = ((context.find_root().default_map if context else None) or {}).get("notify", {})
    return Notify.given(given.get("command_"), given.get("webhook"), given.get("timeout_s"))
