"""Training of the zoo's larger families: a base from the pictures, and copies of it that are tuned on few.

Knows latents and captions; knows no family and no files but its own training states.
"""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _denoiser import LORA_CONVOLUTIONS, LORA_UNET
from torch import Tensor, nn

EMPTY_CAPTIONS, PREFIXED, EMA = 0.1, 0.3, 0.999
DECAY_FROM = 0.5  # of the steps: constant learning rate until here, then linear to 0
RATES = {"sdxl": 8e-4, "sd3": 1e-3}  # of the base
BATCHES = {"sdxl": 32, "sd3": 16}


def optimizers(modules: nn.ModuleDict, rate: float, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW; Muon for the matrices within the blocks of a transformer, which need far fewer steps with it."""
    matrices, others = [], []
    for name, weight in modules.named_parameters():
        if weight.requires_grad:
            inside = muon and weight.dim() == 2 and name.startswith("transformer.transformer_blocks")
            (matrices if inside else others).append(weight)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"))
    return found


def train_base(
    family: Any,
    parts: nn.ModuleDict,
    latents: Tensor,
    sizes: Tensor,
    captions: list[str],
    steps: int,
    state_path: Path,
    compiled: bool = False,
) -> nn.ModuleDict:
    """Train all parts together on latents [P, 16, 16, 16] and captions; give back the moving average.

    `sizes` [P]: what the pictures were before they were enlarged, in pixels. A captions list shorter than the
    latents is repeated. Goes on from the state of an earlier run.
    """
    peak, batch = RATES[family.name], BATCHES[family.name]
    optimizing = optimizers(parts, peak, muon=True)
    average = copy.deepcopy(parts).requires_grad_(False)
    plain = family.tokens(captions)
    prefixed = family.tokens(["a picture of a " + re.sub(r"^(a|an|the) ", "", c) for c in captions])
    empty = family.tokens([""])
    prompts = _joined(plain, prefixed, empty)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        parts.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizing, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
    if compiled:
        parts[family.denoiser].compile()
    began, running = time.time(), 0.0
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        rate = min(1.0, (step + 1) / 200) * min(1.0, (1 - step / steps) / (1 - DECAY_FROM))
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        which = torch.randint(len(latents), (batch,), generator=generator)
        chance = torch.rand(batch, generator=generator)
        rows = which % len(captions) + len(captions) * (chance < EMPTY_CAPTIONS + PREFIXED)
        rows = torch.where(chance < EMPTY_CAPTIONS, 2 * len(captions), rows)
        states = family.encode(parts, prompts.rows(rows))
        errors = family.errors(parts, latents[which].float(), states, sizes[which], generator, weighted=True)
        loss = errors.mean()
        for optimizer in optimizing:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(parts.parameters()), 1 - decay)
        value = loss.item()
        running = value if step == start else 0.99 * running + 0.01 * value
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {
                "model": parts.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizing],
                "step": step + 1,
            }
            torch.save(state, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            rate_s = (time.time() - began) / (step + 1 - start)
            print(
                f"{family.name} base step {step + 1}/{steps} loss {running:.4f} {rate_s:.3f} s/step",
                flush=True,
            )
    return average.eval()


def _joined(*prompts: Any) -> Any:
    first = prompts[0]
    return type(first)(
        torch.cat([p.clip for p in prompts]),
        None if first.t5 is None else torch.cat([p.t5 for p in prompts]),
        torch.cat([p.empty for p in prompts]),
    )


@dataclass(frozen=True)
class Recipe:
    """How a copy of the base is tuned; the learning rate is constant, as in the training scripts."""

    algorithm: str  # full, lora, dora or lokr; full changes the denoiser alone
    steps: int
    learning_rate: float
    batch: int = 5
    rank: int = 8
    seed: int = 0


LAYERS = {
    "sdxl": (*LORA_UNET, *LORA_CONVOLUTIONS),
    "sd3": (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    ),
}


def tune(family: Any, parts: nn.ModuleDict, latents: Tensor, caption: str, recipe: Recipe) -> nn.ModuleDict:
    """A copy of the base tuned on latents [P, 16, 16, 16] of one caption.

    With an adapter, the denoiser of the copy is a PEFT model or has PEFT's adapter "default".
    """
    torch.manual_seed(recipe.seed)
    tuned = copy.deepcopy(parts).requires_grad_(False)
    name = family.denoiser
    if recipe.algorithm == "full":
        tuned[name].requires_grad_(True)
    elif recipe.algorithm == "lokr":
        from peft import LoKrConfig, get_peft_model

        tuned[name] = get_peft_model(
            tuned[name],
            LoKrConfig(r=recipe.rank, alpha=recipe.rank, target_modules=list(LAYERS[family.name])),
        )
    else:
        from peft import LoraConfig

        tuned[name].add_adapter(
            LoraConfig(
                r=recipe.rank,
                lora_alpha=recipe.rank,
                init_lora_weights="gaussian",
                use_dora=recipe.algorithm == "dora",
                target_modules=list(LAYERS[family.name]),
            )
        )
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, recipe.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, fused=True
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        states = family.encode(tuned, family.tokens([caption] * recipe.batch))
    sizes = torch.full((recipe.batch,), 64)
    order: list[int] = []
    for _ in range(recipe.steps):
        while len(order) < recipe.batch:
            order += torch.randperm(len(latents), generator=generator).tolist()
        which, order = order[: recipe.batch], order[recipe.batch :]
        loss = family.errors(tuned, latents[which].float(), states, sizes, generator, weighted=False).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return tuned.eval()
