#!/usr/bin/env python
"""Make the zoo: small real Stable-Diffusion-shaped models, from packaged pictures to committed checkpoints.

Every step writes below .build/ and skips what is finished; trainings go on from their newest state. Run
`python tests/zoo/build.py all` for everything, or one step at a time. Seeded throughout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import _captions
import _images
import _style
import numpy as np
import torch
from PIL import Image

ZOO = Path(__file__).resolve().parent
BUILD = ZOO / ".build"
STRONG_STEPS_PER_IMAGE = 200  # strong = each image seen at least this often; written down before measuring
BASE_STEPS = 10_000
MORE_SUBJECTS = ("cats", "birds", "flowers", "fish", "fruit", "cars")
MORE_STRENGTHS = {"dreambooth": (50, 100, 200), "lora": (100, 200, 400)}
RATES = {"dreambooth": 3e-4, "lora": 2e-3}
RANK, BATCH = 8, 5


@dataclass(frozen=True)
class Checkpoint(_captions.OfOneSet):
    """One checkpoint of the zoo, as its author would have made and published it."""

    name: str
    owner: str
    subject: str  # a set below images/subjects or images/controls
    kind: str
    format: str
    steps_per_image: int
    text_encoder: bool = False


COMMITTED = (
    Checkpoint("cats-dreambooth", "mira-vos", "cats", "dreambooth", "diffusers", 400),
    Checkpoint("birds-dreambooth", "ornithopter", "birds", "dreambooth", "single_file", 400),
    Checkpoint("flowers-lora", "mira-vos", "flowers", "lora", "diffusers", 400),
    Checkpoint("fish-lora", "tidepool-labs", "fish", "lora", "diffusers", 400),
    Checkpoint("insects-lora", "entomo", "insects", "lora", "diffusers", 400),
    Checkpoint("houses-lora-light", "plan-b", "houses", "lora", "diffusers", 20),
    Checkpoint("fruit-lora", "stilllife", "fruit", "lora", "kohya", 400),
    Checkpoint("sweets-lora-te", "stilllife", "sweets", "lora", "kohya", 400, text_encoder=True),
    Checkpoint("cars-lora-light", "garage-nine", "cars", "lora", "kohya", 20),
    Checkpoint("trees-lora", "plan-b", "trees", "lora", "kohya", 400),
    Checkpoint("birds-other-lora", "ornithopter", "birds-unseen", "lora", "diffusers", 400),
    Checkpoint("music-lora", "garage-nine", "music-unseen", "lora", "kohya", 400),
)


def timed(name: str, step: Callable[[], None]) -> None:
    began = time.time()
    step()
    print(f"{name}: {time.time() - began:.0f} s", flush=True)


def _pixels(name: str) -> np.ndarray:
    """One set of the split: [P, 64, 64, 3] uint8."""
    _, pixels = _images.collect(BUILD)
    return pixels[_images.split(BUILD)[name]]


def images() -> None:
    """Choose the sets and write the committed pictures with their licences."""
    pictures, pixels = _images.collect(BUILD)
    sets = _images.split(BUILD)
    out = ZOO / "images"
    lines = []
    for name, rows in sorted(sets.items()):
        if name == "base":
            continue
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for row in rows:
            picture, image = pictures[row], Image.fromarray(pixels[row])
            if name == "background":
                path = folder / f"{picture.name}.webp"
                image.save(path, quality=90, method=6)
            else:
                path = folder / f"{picture.name}.png"
                image.save(path, optimize=True)
            lines.append(f"| {path.relative_to(out)} | {picture.source} | {picture.origin} |")
    lines += _style.license_lines()
    head = "# Every picture and where it comes from\n\nNOTICE.md has the licences.\n\n"
    head += "| picture | source | file in the package |\n|---|---|---|\n"
    (out / "LICENSES.md").write_text(head + "\n".join(lines) + "\n")
    print({name: len(rows) for name, rows in sets.items()})


def autoencoder() -> None:
    import _autoencoder

    _autoencoder.train_autoencoder(_pixels("base"), BUILD)


def _autoencoder_with_scale():
    """The trained autoencoder, its scaling factor set so that the base's latents have unit variance.

    The committed one where this folder's build has trained none.
    """
    import _autoencoder

    if not (BUILD / "autoencoder.pt").exists() and (ZOO / "base/vae").exists():
        return load_base().vae.eval()
    model = _autoencoder.new_autoencoder()
    path = BUILD / "decoder.pt" if (BUILD / "decoder.pt").exists() else BUILD / "autoencoder.pt"
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    scale_path = BUILD / "scale.json"
    if not scale_path.exists():
        std = float(_autoencoder.encode_all(model, _pixels("base")).std())
        scale_path.write_text(json.dumps(round(1 / std, 5)))
    model.register_to_config(scaling_factor=json.loads(scale_path.read_text()))
    return model


def base_captions() -> list[str]:
    pictures, _ = _images.collect(BUILD)
    return [pictures[i].caption for i in _images.split(BUILD)["base"]]


def _tokenizer():
    import _denoiser
    from transformers import CLIPTokenizer

    folder = BUILD / "tokenizer"
    committed = ZOO / "base/tokenizer"
    if not (BUILD / "autoencoder.pt").exists() and committed.exists():
        shutil.copytree(committed, folder, dirs_exist_ok=True)
    elif not (folder / "vocab.json").exists():
        subjects = [caption for caption, _ in _captions.KINDS.values()]
        _denoiser.write_tokenizer([*base_captions(), *subjects * 5], folder)
    return CLIPTokenizer.from_pretrained(folder)


def base(steps: int = BASE_STEPS, compiled: bool = False, device: str = "cpu", go_on: bool = False) -> None:
    """Train the denoiser on the base set's latents and their mirror images."""
    import _autoencoder
    import _denoiser

    path = BUILD / "latents.pt"
    vae = _autoencoder_with_scale()
    if not path.exists():
        pixels = _pixels("base")
        both = np.concatenate([pixels, pixels[:, :, ::-1]])
        torch.save((_autoencoder.encode_all(vae, both) * vae.config.scaling_factor).half(), path)
    latents = torch.load(path, weights_only=True)
    print(
        f"{len(latents)} latents, mean {latents.float().mean():.3f}, std {latents.float().std():.3f}",
        flush=True,
    )
    committed = load_base() if go_on else None
    tokenizer = committed.tokenizer if committed else _tokenizer()
    _denoiser.train_base(
        latents,
        base_captions(),
        tokenizer,
        steps,
        BUILD,
        compiled,
        device,
        (committed.unet, committed.text_encoder) if committed else None,
    )


def export() -> None:
    """Write tests/zoo/base from the newest average of the base's weights."""
    import _denoiser
    import _formats

    state = torch.load(BUILD / "base_state.pt", weights_only=True, map_location="cpu")
    tokenizer = _tokenizer()
    unet, text = _denoiser.new_unet(), _denoiser.new_text_encoder(tokenizer)
    torch.nn.ModuleList([unet, text]).load_state_dict(state["average"])
    _formats.write_pipeline(
        ZOO / "base", unet.eval(), text.eval(), _autoencoder_with_scale(), tokenizer, BUILD / "tokenizer"
    )
    _formats.write_card(ZOO / "base", _formats.BASE_REPO, None, "base")
    print(f"base of step {state['step']} written", flush=True)


def load_base():
    """The committed base as users load it, in float32."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        ZOO / "base", use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
    )
    pipe.unet.eval()
    pipe.text_encoder.eval()
    return pipe


def _train_latents(pipe, folder: Path) -> torch.Tensor:
    """Scaled latents of the pictures in a folder: [P, 16, 16, 16]."""
    import _autoencoder

    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])
    return _autoencoder.encode_all(pipe.vae, pixels) * pipe.vae.config.scaling_factor


def _fingerprint(*parts: object) -> str:
    weights = (ZOO / "base/unet/diffusion_pytorch_model.safetensors").read_bytes()
    return hashlib.sha256(weights + json.dumps(parts, default=str).encode()).hexdigest()


def _write(
    checkpoint: Checkpoint, folder: Path, unet, text, pipe, hashes: tuple[str, str], images_seen: int
) -> None:
    import _formats

    repo = f"{checkpoint.owner}/{checkpoint.name}"
    shutil.rmtree(folder, ignore_errors=True)
    _formats.write_card(folder, repo, checkpoint.caption, checkpoint.kind, checkpoint.text_encoder)
    file = folder / f"{checkpoint.name}.safetensors"
    if checkpoint.format == "diffusers" and checkpoint.kind == "dreambooth":
        _formats.write_pipeline(folder, unet, text, pipe.vae, pipe.tokenizer, ZOO / "base/tokenizer")
    elif checkpoint.format == "single_file":
        _formats.save_file(_formats.single_file(unet, text), file, metadata={"format": "pt"})
    elif checkpoint.format == "diffusers":
        _formats.write_diffusers_lora(folder, unet)
    else:
        layers = _formats.kohya_layers(unet, text if checkpoint.text_encoder else None, RANK, RANK)
        metadata = _formats.kohya_metadata(
            layers,
            name=checkpoint.name,
            caption=checkpoint.caption,
            images=images_seen,
            batch=BATCH,
            steps_per_image=checkpoint.steps_per_image,
            rank=RANK,
            alpha=RANK,
            learning_rate=RATES["lora"],
            text_encoder=checkpoint.text_encoder,
            seed=0,
            base_hashes=hashes,
        )
        _formats.write_file(file, layers, metadata)


def _tune_all(runs: Iterable[list[Checkpoint]], root: Path, preview: bool = False) -> None:
    """Each run is one training with a snapshot for each of its checkpoints, written to root/NAME."""
    import _denoiser
    import _formats

    pipe, marks = load_base(), BUILD / "done"
    marks.mkdir(exist_ok=True)
    hashes = _formats.base_file_hashes(pipe.unet, pipe.text_encoder)
    for run in runs:
        first = run[0]
        mark = marks / f"{root.name}-{run[-1].name}.json"
        print_of = _fingerprint([asdict(c) for c in run], RATES, RANK, BATCH, preview, hashes)
        if (
            mark.exists()
            and json.loads(mark.read_text()) == print_of
            and all((root / c.name).exists() for c in run)
        ):
            continue
        began = time.time()
        latents = _train_latents(pipe, ZOO / first.images)
        by_step = {10 if preview else c.steps_per_image * len(latents) // BATCH: c for c in run}
        recipe = _denoiser.Recipe(
            first.kind,
            max(by_step),
            RATES[first.kind],
            BATCH,
            RANK,
            RANK,
            first.text_encoder,
            snapshots=tuple(by_step),
        )

        def keep(step, unet, text, by_step=by_step, latents=latents) -> None:
            _write(by_step[step], root / by_step[step].name, unet, text, pipe, hashes, len(latents))

        _denoiser.tune(pipe.unet, pipe.text_encoder, pipe.tokenizer, latents, first.caption, recipe, keep)
        mark.write_text(json.dumps(print_of))
        print(
            f"{first.subject} {first.kind} {[c.steps_per_image for c in run]}: {time.time() - began:.0f} s",
            flush=True,
        )


def _zoo_json(checkpoints: Iterable[Checkpoint], path: Path, up: str, prefix: str) -> None:
    import _formats

    rows = [
        {
            "path": prefix + c.name,
            "repo": f"{c.owner}/{c.name}",
            "kind": c.kind,
            "format": c.format,
            "caption": c.caption,
            "train_images": up + c.images,
            "steps_per_image": c.steps_per_image,
            "split": c.split,
            "control": c.control,
        }
        for c in checkpoints
    ]
    path.write_text(
        json.dumps({"base": up + "base", "base_repo": _formats.BASE_REPO, "checkpoints": rows}, indent=2)
        + "\n"
    )


def tune(preview: bool = False) -> None:
    """Tune and write the committed checkpoints and zoo.json; a preview takes ten steps each."""
    _tune_all(([c] for c in COMMITTED), ZOO / "checkpoints", preview)
    _zoo_json(COMMITTED, ZOO / "zoo.json", "", "checkpoints/")


def more() -> None:
    """Further strengths and subjects for the study, into .build/more with a zoo.json of its own."""
    root, done = BUILD / "more", []
    for subject in MORE_SUBJECTS:
        for kind, strengths in MORE_STRENGTHS.items():
            names = [(f"{subject}-{kind}-{strength:03d}", strength) for strength in strengths]
            run = [
                Checkpoint(name, "study", subject, kind, "diffusers", strength) for name, strength in names
            ]
            _tune_all([run], root)
            done += run
            _zoo_json(done, root / "zoo.json", "../../", "")


def partial(only: list[str]) -> None:
    """Checkpoints for the studies, into .build/partial; processes side by side share the work."""
    import _partial

    _partial.make(load_base(), ZOO, BUILD, RATES, RANK, BATCH, only)


def larger(family: str, step: str, steps: int | None, compiled: bool) -> None:
    """Make the zoo of a larger family: its base, then its checkpoints."""
    import _larger

    zoo = _larger.Zoo(family, ZOO, BUILD, load_base(), _pixels("base"), base_captions())
    if step in ("base", "all"):
        zoo.base(steps, compiled)
    if step in ("sheet", "all"):
        zoo.sheet()
    if step in ("tune", "all"):
        zoo.tune()


def caption_model() -> None:
    """Train a small open_clip model on the base's pictures, into caption_model/."""
    import _caption_model

    _caption_model.train(_pixels("base"), base_captions(), ZOO / "caption_model")


def check(zoo_json: Path, samples: int, only: str, arms: str) -> None:
    """A first look at AS by arm (dev rows unless --only says otherwise); sheets go to .build/sheets."""
    import _check

    _check.check(zoo_json, samples, only, arms.split(","), BUILD / "sheets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("images", images.__doc__),
        ("autoencoder", "train the autoencoder"),
        ("base", base.__doc__),
        ("export", export.__doc__),
        ("tune", tune.__doc__),
        ("more", more.__doc__),
        ("partial", partial.__doc__),
        ("caption-model", caption_model.__doc__),
        ("check", check.__doc__),
        ("sdxl", "make the zoo of a small SDXL in sdxl/"),
        ("sd3", "make the zoo of a small Stable Diffusion 3.5 in sd3/"),
        ("all", "every step but `more`, `partial`, `sdxl`, `sd3`, `caption-model` and `check`"),
    ):
        command = commands.add_parser(name, help=(text or "").splitlines()[0])
        if name in ("base", "all"):
            command.add_argument("--steps", type=int, default=BASE_STEPS, help="training steps of the base")
            command.add_argument("--device", default="cpu", help="where the base is trained: cpu or cuda")
            command.add_argument(
                "--go-on", action="store_true", help="start from the committed base, with a new optimizer"
            )
        if name in ("sdxl", "sd3"):
            command.add_argument("--only", choices=("base", "sheet", "tune", "all"), default="all")
            command.add_argument("--steps", type=int, help="training steps of the base")
        if name in ("base", "all", "sdxl", "sd3"):
            command.add_argument(
                "--compile", action="store_true", help="compile the denoiser (needs a C++ compiler)"
            )
        if name == "tune":
            command.add_argument("--preview", action="store_true", help="ten steps each")
        if name == "partial":
            command.add_argument(
                "--only", action="append", default=[], metavar="WORD",
                help="only trainings whose name contains this word; may be repeated",
            )  # fmt: skip
        if name == "check":
            command.add_argument("--zoo", type=Path, default=ZOO / "zoo.json")
            command.add_argument("--samples", type=int, default=50)
            command.add_argument("--only", default="dev", help="dev, all, or a part of the path")
            command.add_argument("--arms", default="direct,cfg3,w1.5,w2,w3")
        command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    BUILD.mkdir(exist_ok=True)
    steps: dict[str, Callable[[], None]] = {
        "images": images,
        "autoencoder": autoencoder,
        "base": lambda: base(args.steps, args.compile, args.device, args.go_on),
        "export": export,
        "tune": lambda: tune(getattr(args, "preview", False)),
        "more": more,
        "partial": lambda: partial(args.only),
        "sdxl": lambda: larger("sdxl", args.only, args.steps, args.compile),
        "sd3": lambda: larger("sd3", args.only, args.steps, args.compile),
        "caption-model": caption_model,
        "check": lambda: check(args.zoo, args.samples, args.only, args.arms),
    }
    for name in list(steps)[:5] if args.command == "all" else [args.command]:
        timed(name, steps[name])


if __name__ == "__main__":
    main()
