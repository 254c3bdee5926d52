"""What guidance embedding should the base and the tuned side of a guidance-distilled model get?

    python tests/guidance_embedding_study.py distil     # makes tests/zoo/.build/distilled.pt
    python tests/guidance_embedding_study.py run        # adds to docs/guidance-embedding.jsonl
    python tests/guidance_embedding_study.py table      # prints the tables of docs/method.md

FLUX.1 dev is told a guidance scale, and predicts in one evaluation what classifier-free guidance of that
scale makes of two. Such a model is made here of the zoo's flow model: a copy of it gets FLUX.1's guidance
embedding, and learns the guided predictions of the original for scales of 1 to 5. Copies of that are tuned
with each of TRAINED, the scales that trainers use, and sampled with every combination of AT.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT), str(ROOT / "zoo")]  # `finextract` is a folder of tests too

import _families  # noqa: E402
from _larger import CHECKPOINTS, flow_zoo  # noqa: E402
from _training import BATCHES  # noqa: E402
from diffusers.models.embeddings import TimestepEmbedding  # noqa: E402
from membership_study import ZOO, auc, null_of, picture  # noqa: E402
from PIL import Image  # noqa: E402

from finextract.extract import ExtractionSettings, extract_all  # noqa: E402
from finextract.guidance import Method  # noqa: E402
from finextract.losses import BaseCache, Losses, Query  # noqa: E402
from finextract.models.base import CopiedPair  # noqa: E402
from finextract.models.loading import load_base as load_pipeline  # noqa: E402
from finextract.sscd import Embedder, load_embedder  # noqa: E402

RESULTS = ROOT.parent / "docs/guidance-embedding.jsonl"
BUILD = ZOO / ".build"
DISTILLED = BUILD / "distilled.pt"
STEPS, RATE = 600, 3e-4  # of the distillation; the rate decays linearly to 0
SCALES = (1.0, 5.0)
TRAINED = AT = (1.0, 3.5)
MODEL_GUIDANCE = 2.0  # w'
TIMES = (150.0, 350.0, 550.0)
STRONG = CHECKPOINTS["sd3"][:2]
SAMPLES_PER_IMAGE, SAMPLING_STEPS = 8, 25


class WithGuidance(nn.Module):
    """The embedding of time and pooled text, and of a guidance scale, as FLUX.1 dev's."""

    def __init__(self, plain: nn.Module, width: int) -> None:
        super().__init__()
        self.plain, self.guidance_embedder = plain, TimestepEmbedding(256, width)
        nn.init.zeros_(self.guidance_embedder.linear_2.weight)  # at first, any scale is 1
        nn.init.zeros_(self.guidance_embedder.linear_2.bias)
        self.scale: float | Tensor = 1.0

    def forward(self, times: Tensor, pooled: Tensor) -> Tensor:
        """The embedding [N, D] of times [N] and pooled states [N, P]."""
        scales = torch.as_tensor(self.scale).expand(len(times)) * 1000
        return self.plain(times, pooled) + self.guidance_embedder(self.plain.time_proj(scales))


def with_guidance(parts: nn.ModuleDict) -> nn.ModuleDict:
    """A copy of the flow model's parts whose transformer takes a guidance scale."""
    made = copy.deepcopy(parts)
    transformer: Any = made["transformer"]
    torch.manual_seed(0)
    transformer.time_text_embed = WithGuidance(transformer.time_text_embed, transformer.inner_dim)
    return made


def distil() -> None:
    """Teaches a copy the guided predictions of the base; keeps its transformer."""
    zoo = flow_zoo()
    family, teacher = zoo.family, zoo.load_base().requires_grad_(False)
    student = with_guidance(teacher)
    transformer: Any = student["transformer"].requires_grad_(True)
    optimizer = torch.optim.AdamW(transformer.parameters(), RATE, betas=(0.9, 0.99), fused=True)
    latents = torch.load(BUILD / "latents.pt", weights_only=True)
    captions = zoo.captions
    batch, began = BATCHES["sd3"], time.time()
    explained: list[float] = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(10**6 + step)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / STEPS)
        which = torch.randint(len(latents), (batch,), generator=generator)
        scales = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(batch, generator=generator)
        drawn = captions_of(which, captions, generator)
        with torch.no_grad():
            states = family.encode(teacher, family.tokens(drawn))
            noisy, times = noised(latents[which].float(), generator)
            alone = family.predict(teacher, noisy, times, states, scales)
            without = family.predict(
                teacher, noisy, times, family.encode(teacher, family.tokens([""] * batch)), scales
            )
            goal = without + scales.view(-1, 1, 1, 1) * (alone - without)
        transformer.time_text_embed.scale = scales
        made = family.predict(student, noisy, times, states, scales)
        loss = (made - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        explained.append(1 - float(loss / (alone - goal).square().mean()))
        if (step + 1) % 100 == 0:
            share, seconds = np.mean(explained[-100:]), (time.time() - began) / (step + 1)
            print(f"step {step + 1}/{STEPS} explained {share:.3f} {seconds:.2f} s/step", flush=True)
    transformer.time_text_embed.scale = 1.0
    torch.save({"explained": float(np.mean(explained[-100:])), "model": transformer.state_dict()}, DISTILLED)


def captions_of(which: Tensor, captions: list[str], generator: torch.Generator) -> list[str]:
    """The captions of pictures, one in ten of them empty."""
    empty = torch.rand(len(which), generator=generator) < 0.1
    return ["" if e else captions[int(i) % len(captions)] for i, e in zip(which, empty, strict=True)]


def noised(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy latents and their times, as in training."""
    share = torch.randn(len(latents), generator=generator).sigmoid()
    share = _families.SHIFT * share / (1 + (_families.SHIFT - 1) * share)
    noise = torch.randn(latents.shape, generator=generator)
    return torch.lerp(latents, noise, share.view(-1, 1, 1, 1)), 1000 * share


def run() -> None:
    """Tunes and samples every checkpoint that has no line yet."""
    zoo = flow_zoo()
    student = with_guidance(zoo.load_base().requires_grad_(False))
    student["transformer"].load_state_dict(torch.load(DISTILLED, weights_only=True)["model"])
    pipeline: Any = load_pipeline(zoo.root / "base", torch.device("cpu"), torch.float32)
    done, embedder = {(row["subject"], row["trained_at"]) for row in measured()}, load_embedder()
    for checkpoint in STRONG:
        subject, algorithm, caption = checkpoint.subject, checkpoint.algorithm, checkpoint.caption
        paths = zoo.pictures(checkpoint)
        embedded = embedder.embed([Image.open(path).convert("RGB") for path in paths])
        for trained_at in TRAINED:
            if (subject, trained_at) in done:
                continue
            student["transformer"].time_text_embed.scale = trained_at
            tuned = zoo.tuned(checkpoint, student)["transformer"]
            base = student["transformer"].eval()
            pair = CopiedPair(
                replace(pipeline, transformer=base),
                replace(pipeline, transformer=tuned.requires_grad_(False)),
                "lora" if algorithm == "lora" else "full",
            )
            line: dict[str, Any] = {"subject": subject, "algorithm": algorithm, "trained_at": trained_at}
            for scale in AT:
                tuned.time_text_embed.scale = base.time_text_embed.scale = scale
                line[f"AUC at {scale:g}"] = areas(pair, paths)
                line[f"direct {scale:g}"] = similarities(pair, caption, embedded, embedder, "direct")
                for of_base in AT:
                    base.time_text_embed.scale = of_base
                    line[f"{of_base:g} -> {scale:g}"] = similarities(
                        pair, caption, embedded, embedder, "finextract"
                    )
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(subject, algorithm, trained_at, flush=True)


def similarities(
    pair: Any, caption: str, references: np.ndarray, embedder: Embedder, method: Method
) -> list[float]:
    """The highest similarity of a sample to each reference, whose embeddings are `references` [R, D]."""
    guided: dict[str, Any] = (
        {"guidance_scale": MODEL_GUIDANCE, "correction": 0.0} if method == "finextract" else {}
    )
    settings = ExtractionSettings(
        preset="single", method=method, samples_per_image=SAMPLES_PER_IMAGE, steps=SAMPLING_STEPS, **guided
    )
    drawn = extract_all(pair, caption, len(references), settings, embedder)
    highest = (references @ drawn.embeddings[drawn.pictures].T).max(axis=1, initial=-1)
    return [round(float(value), 4) for value in highest]


def areas(pair: Any, paths: list[Path]) -> list[float]:
    """AUC of the log-ratios, trained on against background, at each of TIMES."""
    losses = Losses(pair, 0, "", 64, BaseCache())
    trained, others = (
        [picture(path) for path in some] for some in (paths, null_of({"trained": paths, "untrained": []}, 60))
    )
    ratios = ([losses.log_ratios([Query(p, t=t) for p in some]) for some in (trained, others)] for t in TIMES)
    return [round(float(auc(*both)), 3) for both in ratios]


def measured() -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """AS by the scale at which a copy was tuned, and the scales at which it and its base are sampled."""
    arms = [*(f"direct {s:g}" for s in AT), *(f"{b:g} -> {s:g}" for s in AT for b in AT)]
    print(
        "| subject | trained at | "
        + " | ".join(arms)
        + " | AUC at "
        + " | AUC at ".join(f"{s:g}" for s in AT)
        + " |"
    )
    print("|---" * (4 + len(arms)) + "|")
    means: dict[str, list[float]] = defaultdict(list)
    for row in measured():
        for arm in arms:
            means[arm].append(float(np.mean(row[arm])))
        cells = [f"{means[arm][-1]:.3f}" for arm in arms]
        cells += [", ".join(f"{value:.3f}" for value in row[f"AUC at {scale:g}"]) for scale in AT]
        print(f"| {row['subject']}, {row['algorithm']} | {row['trained_at']:g} | " + " | ".join(cells) + " |")
    print("| mean | | " + " | ".join(f"{np.mean(means[arm]):.3f}" for arm in arms) + " | | |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["distil", "run", "table"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"distil": distil, "run": run, "table": table}[options.action]()


if __name__ == "__main__":
    main()
