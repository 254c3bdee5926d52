"""Checkpoints for the study of membership inference: which pictures was a checkpoint trained on?

Defines the runs and makes them; a run is one training with a snapshot for each strength. Knows the sets of
pictures and the augmentations; the training itself is in _denoiser. Runs are independent, and processes that
are started side by side share them. P = pictures, V = augmented variants of a picture.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import _autoencoder
import _captions
import _denoiser
import _formats
import _style
import numpy as np
import torch
from PIL import Image

STEPS_PER_IMAGE = (5, 10, 20, 50, 100)
STRONG_STEPS_PER_IMAGE = (*STEPS_PER_IMAGE, 400)  # of what changes the pictures
STYLE_STEPS_PER_IMAGE = (20, 50, 100, 400)
KINDS = ("lora", "dreambooth")
VARIED_SUBJECTS = ("cats", "flowers", "birds", "fish")  # two dev, two test
VARIATIONS = ("crops", "flips", "prior", "rank4", "rank64", "half-rate")
CHANGED_PICTURES = ("flips", "crops")
LORA_ONLY = {"rank4": 4, "rank64": 64}  # variation -> rank; alpha is the rank
CROPS, CROP_SHARE = 24, (0.85, 1.0)  # crops of a picture, and their side as a share of the picture's
CLASS_PICTURES, CLASS_GUIDANCE = 20, 3.0  # made by the base for prior preservation
MANY = 40  # pictures of a run of group D
DRAW_SEED = 20261129  # of the halves of a hand and of the draws of group D
STYLE = {  # hand -> (caption, split)
    "van-gogh": ("a picture of a painting", "dev"),
    "hokusai": ("a picture of a print", "test"),
    "portraits": ("a picture of a person", "test"),
}


@dataclass(frozen=True)
class Run:
    """One training; each of its strengths gives one checkpoint."""

    group: str  # A subjects, B variations, C style, D forty pictures
    variation: str
    subject: str  # a set of pictures, with the half or the draw where there are two
    kind: str  # dreambooth or lora
    caption: str
    split: str
    folder: str  # of the pictures, relative to tests/zoo
    trained: tuple[str, ...]  # file names in the folder, sorted
    untrained: tuple[str, ...]
    strengths: tuple[int, ...]  # steps per image
    learning_rate: float
    rank: int

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.variation}-{self.kind}"

    def checkpoint(self, steps_per_image: int) -> str:
        return f"{self.name}-{steps_per_image:03d}"


def _halves(names: list[str], size: int) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(letter, drawn, not drawn): two disjoint seeded draws of `size` names."""
    order = np.random.default_rng(DRAW_SEED).permutation(len(names))
    for letter, drawn in (("a", order[:size]), ("b", order[size : 2 * size])):
        chosen = {names[i] for i in drawn}
        yield letter, tuple(sorted(chosen)), tuple(sorted(set(names) - chosen))


def runs(zoo: Path, build: Path, rates: dict[str, float], rank: int) -> list[Run]:
    """Every run, the most important first: style, subjects, forty pictures, variations."""
    made: list[Run] = []

    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".webp"))

    for hand, (caption, split) in STYLE.items():
        folder = _style.folder_of(hand, zoo, build)
        pictures = names(folder)
        where = str(folder.relative_to(zoo))
        for letter, drawn, rest in _halves(pictures, len(pictures) // 2):
            made += [
                Run(
                    *("C", "style", f"{hand}-{letter}", kind, caption, split, where, drawn, rest),
                    *(STYLE_STEPS_PER_IMAGE, rates[kind], rank),
                )
                for kind in KINDS
            ]

    def of_subject(group: str, variation: str, subject: str, kind: str) -> Run:
        kind_of, split = _captions.SUBJECTS[subject]
        where = f"images/subjects/{subject}"
        return Run(
            *(group, variation, subject, kind, _captions.KINDS[kind_of][0], split, where),
            *(tuple(names(zoo / where)), ()),
            STRONG_STEPS_PER_IMAGE if variation in CHANGED_PICTURES else STEPS_PER_IMAGE,
            rates[kind] / (2 if variation == "half-rate" else 1),
            LORA_ONLY.get(variation, rank),
        )

    made += [of_subject("A", "default", subject, kind) for subject in _captions.SUBJECTS for kind in KINDS]
    background = names(zoo / "images/background")
    for letter, drawn, rest in _halves(background, MANY):
        split = {"a": "dev", "b": "test"}[letter]
        made += [
            Run(
                *("D", "n40", f"background-{letter}", kind, "a picture", split, "images/background"),
                *(drawn, rest, STEPS_PER_IMAGE, rates[kind], rank),
            )
            for kind in KINDS
        ]
    for variation in VARIATIONS:
        kinds = KINDS if variation not in LORA_ONLY else ("lora",)
        made += [of_subject("B", variation, subject, kind) for subject in VARIED_SUBJECTS for kind in kinds]
    return made


def _crops(picture: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """Random square crops of a square picture, each resized to the picture's own size."""
    side = picture.width
    made = []
    for _ in range(CROPS):
        crop = side * rng.uniform(*CROP_SHARE)
        left, top = rng.uniform(0, side - crop, 2)
        box = (left, top, left + crop, top + crop)
        made.append(picture.resize(picture.size, Image.LANCZOS, box=box))
    return made


def _latents(vae, scale: float, paths: list[Path], variation: str) -> torch.Tensor:
    """Scaled latents of pictures: [P, 16, 16, 16], or [P, V, 16, 16, 16] where they are augmented."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    rng = np.random.default_rng(DRAW_SEED)
    if variation == "flips":
        groups = [[p, p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] for p in pictures]
    elif variation == "crops":
        groups = [_crops(picture, rng) for picture in pictures]
    else:
        groups = [[picture] for picture in pictures]
    pixels = np.stack([np.asarray(variant) for group in groups for variant in group])
    latents = _autoencoder.encode_all(vae, pixels) * scale
    return latents if len(groups[0]) == 1 else latents.view(len(groups), -1, *latents.shape[1:])


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the file's lock, for as long as the block runs."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _class_latents(pipe, caption: str, folder: Path) -> torch.Tensor:
    """Scaled latents [C, 16, 16, 16] of class pictures, which the base makes once and the folder keeps."""
    scale = pipe.vae.config.scaling_factor
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if len(list(folder.glob("*.png"))) < CLASS_PICTURES:
            pairs = [
                _denoiser.Pair(
                    pipe.unet, _denoiser.prompt_embedding(pipe.tokenizer, pipe.text_encoder, words)
                )
                for words in (caption, "")
            ]
            with torch.no_grad():
                made = _denoiser.sample(_denoiser.guided(*pairs, CLASS_GUIDANCE), list(range(CLASS_PICTURES)))
            for seed, picture in enumerate(_autoencoder.decode_all(pipe.vae, made / scale)):
                Image.fromarray(picture).save(folder / f"{seed:02d}.png")
    return _latents(pipe.vae, scale, sorted(folder.glob("*.png")), "default")


def _write(run: Run, steps_per_image: int, root: Path, unet, text) -> None:
    """LoRA as diffusers writes it; DreamBooth as one file without VAE, which is the smallest."""
    name = run.checkpoint(steps_per_image)
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    _formats.write_card(folder, f"study/{name}", run.caption, run.kind)
    if run.kind == "lora":
        _formats.write_diffusers_lora(folder, unet)
    else:
        file = folder / f"{name}.safetensors"
        _formats.save_file(_formats.single_file(unet, text), file, metadata={"format": "pt"})


def _train(run: Run, pipe, zoo: Path, root: Path, batch: int) -> None:
    paths = [zoo / run.folder / name for name in run.trained]
    latents = _latents(pipe.vae, pipe.vae.config.scaling_factor, paths, run.variation)
    by_step = {strength * len(paths) // batch: strength for strength in run.strengths}
    recipe = _denoiser.Recipe(
        run.kind, max(by_step), run.learning_rate, batch, run.rank, run.rank, snapshots=tuple(by_step)
    )
    prior = None
    if run.variation == "prior":
        prior = _class_latents(pipe, run.caption, root / "class" / run.subject)
    _denoiser.tune(
        *(pipe.unet, pipe.text_encoder, pipe.tokenizer, latents, run.caption, recipe),
        lambda step, unet, text: _write(run, by_step[step], root, unet, text),
        prior,
    )


def _fingerprints(zoo: Path, batch: int) -> Callable[[Run], str]:
    """What a finished run's mark says: a digest of the base, the pictures trained on and the definition."""
    base = hashlib.sha256((zoo / "base/unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()

    def of_run(run: Run) -> str:
        files = [(zoo / run.folder / name).read_bytes() for name in run.trained]
        pictures = [hashlib.sha256(file).hexdigest() for file in files]
        defined = {key: value for key, value in asdict(run).items() if key != "untrained"}
        parts = [base, pictures, defined, batch, CROPS, CROP_SHARE, CLASS_PICTURES, CLASS_GUIDANCE, DRAW_SEED]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return of_run


def _rows(run: Run, root: Path, zoo: Path) -> list[dict[str, object]]:
    """The run's rows of zoo.json."""
    up = "/".join([".."] * len(root.relative_to(zoo).parts))
    return [
        {
            "path": run.checkpoint(strength),
            "repo": f"study/{run.checkpoint(strength)}",
            "kind": run.kind,
            "format": "diffusers" if run.kind == "lora" else "single_file",
            "caption": run.caption,
            "train_images": f"{up}/{run.folder}",
            "steps_per_image": strength,
            "split": run.split,
            "control": False,
            "group": run.group,
            "variation": run.variation,
            "subject": run.subject,
            "trained": list(run.trained),
            "untrained": list(run.untrained),
        }
        for strength in run.strengths
    ]


def make(
    pipe, zoo: Path, build: Path, rates: dict[str, float], rank: int, batch: int, only: Sequence[str] = ()
) -> None:
    """Make every run that is not finished and that no other process works at; zoo.json lists the finished.

    With `only`, the runs whose name contains one of its words.
    """
    root, marks = build / "partial", build / "done"
    root.mkdir(parents=True, exist_ok=True)
    marks.mkdir(exist_ok=True)
    with _locked(root / "pictures.lock"):
        _style.write(zoo, build)
    wanted = runs(zoo, build, rates, rank)
    fingerprint = _fingerprints(zoo, batch)
    prints = {run.name: fingerprint(run) for run in wanted}

    def finished(run: Run) -> bool:
        mark = marks / f"partial-{run.name}.json"
        there = all((root / run.checkpoint(strength)).exists() for strength in run.strengths)
        return there and mark.exists() and json.loads(mark.read_text()) == prints[run.name]

    def list_finished() -> int:
        with _locked(root / "zoo.lock"):
            rows = [row for run in wanted if finished(run) for row in _rows(run, root, zoo)]
            up = "/".join([".."] * len(root.relative_to(zoo).parts))
            listing = {"base": f"{up}/base", "base_repo": _formats.BASE_REPO, "checkpoints": rows}
            (root / "zoo.json.part").write_text(json.dumps(listing, indent=2) + "\n")
            (root / "zoo.json.part").rename(root / "zoo.json")
        return len(rows)

    total = sum(len(run.strengths) for run in wanted)
    for run in [run for run in wanted if not only or any(word in run.name for word in only)]:
        with _locked(marks / f"partial-{run.name}.lock", wait=False) as mine:
            if not mine or finished(run):
                continue
            began = time.time()
            _train(run, pipe, zoo, root, batch)
            (marks / f"partial-{run.name}.json").write_text(json.dumps(prints[run.name]))
        done = list_finished()
        print(
            f"{run.group} {run.name}: {time.time() - began:.0f} s; {done} of {total} checkpoints", flush=True
        )
    print(f"{list_finished()} of {total} checkpoints are finished", flush=True)
