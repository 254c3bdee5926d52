"""The zoo's denoiser: UNet and text encoder, the base's training and the tuning of copies of it.

Works on latents scaled to unit variance, [B, 16, 16, 16]; knows no files but its own training states.
B = batch, T = 16 token positions.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS, MERGES, TEXT_WIDTH = 16, 1900, 96
BATCH, LEARNING_RATE, EMA, EMPTY_CAPTIONS, PREFIXED = 32, 1e-3, 0.999, 0.1, 0.3
DECAY_FROM = 0.55  # of the base's steps: constant learning rate until here, then linear to 0
CONTINUED_RATE, CONTINUED_DECAY_FROM = 8e-4, 0.35  # the same, where training goes on from committed weights


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=16,
        out_channels=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def new_text_encoder(
    tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH, cls: type = CLIPTextModel
) -> CLIPTextModel:
    ends = tokenizer.eos_token_id
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=ends,
        )
    )


def write_tokenizer(captions: list[str], folder: Path) -> None:
    """CLIP's byte-pair encoding learned on the captions: vocab.json and merges.txt in CLIP's own form."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    counts = Counter(word for caption in captions for word in re.findall(r"[a-z]+", caption))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in words.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            words[word] = joined
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}, indent=0)
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": TOKENS,
                "do_lower_case": True,
                "unk_token": "<|endoftext|>",
                **special,
            },
            indent=2,
        )
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"unk_token": "<|endoftext|>", **special}, indent=2)
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[B, T] int64, padded as the pipelines pad."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def _noised(
    latents: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Random time steps [B], noise and noisy latents [B, 16, 16, 16]."""
    steps = torch.randint(0, len(alphas), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas[steps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    return steps, noise, noisy.contiguous(memory_format=torch.channels_last)


def train_base(
    latents: torch.Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    steps: int,
    build: Path,
    compiled: bool = False,
    device: str = "cpu",
    committed: tuple[UNet2DConditionModel, CLIPTextModel] | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train UNet and text encoder jointly on [P, 16, 16, 16] latents and captions; give back the EMA weights.

    Resumes from .build/base_state.pt with the optimizer, or starts from `committed` weights with a new one; a
    captions list shorter than the latents is repeated (the second half being mirrored copies).
    """
    torch.manual_seed(0)
    unet, text = new_unet().to(memory_format=torch.channels_last), new_text_encoder(tokenizer)
    both = nn.ModuleList([unet, text])
    peak, decay_from = LEARNING_RATE, DECAY_FROM
    if committed:
        peak, decay_from = CONTINUED_RATE, CONTINUED_DECAY_FROM
        both.load_state_dict(nn.ModuleList(committed).state_dict())
    both.to(device)
    weights = list(both.parameters())
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    average = copy.deepcopy(both).requires_grad_(False)
    plain = tokenize(tokenizer, captions)
    prefixed = tokenize(tokenizer, ["a picture of a " + re.sub(r"^(a|an|the) ", "", c) for c in captions])
    empty = tokenize(tokenizer, [""])[0]
    alphas, state_path, start = new_scheduler().alphas_cumprod, build / "base_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        both.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    forward = torch.compile(unet) if compiled else unet
    began, running = time.time(), 0.0
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        rate = min(1.0, (step + 1) / 200) * min(1.0, (1 - step / steps) / (1 - decay_from))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        which = torch.randint(len(latents), (BATCH,), generator=generator)
        chance = torch.rand(BATCH, generator=generator)[:, None]
        rows = which % len(captions)
        ids = torch.where(chance < EMPTY_CAPTIONS + PREFIXED, prefixed[rows], plain[rows])
        ids = torch.where(chance < EMPTY_CAPTIONS, empty[None], ids)
        times, noise, noisy = _noised(latents[which].float(), alphas, generator)
        signal = (alphas[times] / (1 - alphas[times])).to(device)
        ids, times, noise, noisy = (tensor.to(device) for tensor in (ids, times, noise, noisy))
        made = forward(noisy, times, text(ids).last_hidden_state).sample
        # min-SNR with gamma 5; later, more for the noisy steps, where the outlines are made
        weight = (5 / signal).clamp(max=1) if committed is None else signal.rsqrt().clamp(max=5)
        loss = ((made - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), weights, 1 - decay)
        value = loss.item()
        running = value if step == start else 0.995 * running + 0.005 * value
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {
                "model": both.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1}, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            rate_s = (time.time() - began) / (step + 1 - start)
            print(f"base step {step + 1}/{steps} loss {running:.4f} {rate_s:.3f} s/step", flush=True)
    unet, text = average.cpu()
    return unet.eval(), text.eval()


@dataclass
class Pair:
    """What sampling needs of one model: a UNet and the prompt's embedding [1, T, 96]."""

    unet: nn.Module
    prompt: torch.Tensor


@torch.no_grad()
def prompt_embedding(tokenizer: CLIPTokenizer, text: CLIPTextModel, caption: str) -> torch.Tensor:
    return text(tokenize(tokenizer, [caption])).last_hidden_state


@torch.no_grad()
def sample(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], seeds: list[int], steps: int = 25
) -> torch.Tensor:
    """DDIM from one generator per seed: scaled latents [N, 16, 16, 16]."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    latents = torch.stack(
        [torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    for step in scheduler.timesteps:
        parts = [
            predict(part.contiguous(memory_format=torch.channels_last), step) for part in latents.split(50)
        ]
        latents = scheduler.step(torch.cat(parts), step, latents).prev_sample
    return latents


def guided(strong: Pair, weak: Pair, scale: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """eps = weak + scale * (strong - weak): model guidance, or CFG where both are one UNet."""

    def predict(latents: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        e = strong.unet(latents, step, strong.prompt.expand(len(latents), -1, -1)).sample
        if scale == 1:
            return e
        u = weak.unet(latents, step, weak.prompt.expand(len(latents), -1, -1)).sample
        return torch.lerp(u, e, scale)

    return predict


@dataclass(frozen=True)
class Recipe:
    """How a copy of the base is tuned; the learning rate is constant, as in the training scripts."""

    kind: str  # dreambooth or lora
    steps: int
    learning_rate: float
    batch: int = 5
    rank: int = 8
    alpha: int = 8
    text_encoder: bool = False
    seed: int = 0
    snapshots: tuple[int, ...] = field(default=())


LORA_UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
LORA_CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_shortcut")
LORA_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


def tune(
    base_unet: UNet2DConditionModel,
    base_text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: torch.Tensor,
    caption: str,
    recipe: Recipe,
    keep: Callable[[int, UNet2DConditionModel, CLIPTextModel], None],
    prior: torch.Tensor | None = None,
) -> None:
    """Tune a copy on [P, 16, 16, 16] latents of one caption; `keep` gets it at every snapshot.

    Latents [P, V, 16, 16, 16] have V augmented variants of each picture, one of which is drawn each time the
    picture is used. `prior` [C, 16, 16, 16] are latents of class pictures, which the base made under the
    caption: each step then takes a batch of them too, and the loss of that batch counts as much (DreamBooth's
    prior preservation).
    """
    torch.manual_seed(recipe.seed)
    unet, text = copy.deepcopy(base_unet), copy.deepcopy(base_text)
    if recipe.kind == "lora":
        from peft import LoraConfig

        shared = {"r": recipe.rank, "lora_alpha": recipe.alpha, "init_lora_weights": "gaussian"}
        unet.requires_grad_(False)
        text.requires_grad_(False)
        unet.add_adapter(LoraConfig(target_modules=[*LORA_UNET, *LORA_CONVOLUTIONS], **shared))
        if recipe.text_encoder:
            text.add_adapter(LoraConfig(target_modules=[*LORA_TEXT], **shared))
    else:
        text.requires_grad_(False)
        unet.requires_grad_(True)
    unet.train()
    weights = [w for model in (unet, text) for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, recipe.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, fused=True
    )
    ids = tokenize(tokenizer, [caption]).expand(recipe.batch * (1 if prior is None else 2), -1)
    alphas = new_scheduler().alphas_cumprod
    generator = torch.Generator().manual_seed(recipe.seed)
    order: list[int] = []
    fixed = None if recipe.text_encoder else text(ids).last_hidden_state.detach()
    for step in range(recipe.steps):
        while len(order) < recipe.batch:
            order += torch.randperm(len(latents), generator=generator).tolist()
        which, order = order[: recipe.batch], order[recipe.batch :]
        chosen = latents[which].float()
        if latents.dim() == 5:
            variants = torch.randint(latents.shape[1], (recipe.batch,), generator=generator)
            chosen = chosen[torch.arange(recipe.batch), variants]
        if prior is not None:
            classes = torch.randint(len(prior), (recipe.batch,), generator=generator)
            chosen = torch.cat([chosen, prior[classes].float()])
        times, noise, noisy = _noised(chosen, alphas, generator)
        states = text(ids).last_hidden_state if fixed is None else fixed
        loss = nn.functional.mse_loss(unet(noisy, times, states).sample, noise)
        if prior is not None:
            loss = 2 * loss  # the mean over both halves of the batch, as a sum of the halves' own means
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step + 1 in recipe.snapshots or step + 1 == recipe.steps:
            unet.eval()
            keep(step + 1, unet, text)
            unet.train()
