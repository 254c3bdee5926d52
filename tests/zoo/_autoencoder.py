"""The zoo's autoencoder: AutoencoderTiny, 64x64x3 pictures to 16x16x16 latents of about unit variance.

Trains on the base set alone. Knows pictures and latents; knows no captions and no denoiser.
B = batch.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

WIDTH, LATENT_CHANNELS = 48, 16
STEPS, DECODER_STEPS, BATCH, CROP, LEARNING_RATE = 13_000, 12_000, 32, 32, 2e-3
LATENT_NOISE = 0.05  # of a standard deviation: the decoder must bear a denoiser's small errors


def new_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(3, 2, 0),
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """[B, 64, 64, 3] uint8 -> [B, 3, 64, 64] float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """[B, 3, 64, 64] in [-1, 1] -> [B, 64, 64, 3] uint8."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _crops(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random mirrored 32x32 crops: [B, 3, 32, 32] float32 in [-1, 1]."""
    which = torch.randint(len(pixels), (BATCH,), generator=generator)
    corner = torch.randint(0, (64 - CROP) // 4 + 1, (BATCH, 2), generator=generator) * 4
    mirrored = torch.rand(BATCH, generator=generator) < 0.5
    rows = [
        pixels[i, :, y : y + CROP, x : x + CROP]
        for i, (y, x) in zip(which.tolist(), corner.tolist(), strict=True)
    ]
    crops = torch.stack([row.flip(-1) if m else row for row, m in zip(rows, mirrored.tolist(), strict=True)])
    return crops.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _distance(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """L1 plus half the L1 of the gradients."""
    error = made - true
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def train_autoencoder(pixels: np.ndarray, build: Path) -> AutoencoderTiny:
    """Train encoder and decoder together, then the decoder alone; each phase resumes from its state."""
    phases = (("autoencoder", STEPS), ("decoder", DECODER_STEPS))
    model = new_autoencoder().to(memory_format=torch.channels_last)
    for phase, steps in phases:
        final, state_path = build / f"{phase}.pt", build / f"{phase}_state.pt"
        if not final.exists():
            _train_phase(model, pixels, steps, state_path, frozen_encoder=phase == "decoder")
            torch.save(model.state_dict(), final)
        model.load_state_dict(torch.load(final, weights_only=True))
    return model.eval()


def _train_phase(
    model: AutoencoderTiny, pixels: np.ndarray, steps: int, state_path: Path, frozen_encoder: bool
) -> None:
    data = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # [P, 3, 64, 64] uint8
    weights = model.decoder.parameters() if frozen_encoder else model.parameters()
    peak = LEARNING_RATE / 2 if frozen_encoder else LEARNING_RATE
    optimizer = torch.optim.AdamW(weights, peak, betas=(0.9, 0.99), weight_decay=1e-4)
    start, began = 0, time.time()
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    running = 0.0
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step + (10_000_000 if frozen_encoder else 0))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 200) * (1 - step / steps)
        true = _crops(data, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=step < 0.9 * steps):
            with torch.set_grad_enabled(not frozen_encoder):
                latents = model.encode(true).latents
            noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
            if (
                step % 4 == 3 and not frozen_encoder
            ):  # a coarse latent must be a coarse picture: smoother latents
                noisy, target = F.avg_pool2d(noisy, 2), F.avg_pool2d(true, 2)
            else:
                target = true
            made = model.decode(noisy).sample
        loss = _distance(made.float(), target)
        if not frozen_encoder:  # mean 0 and variance 1 in every channel
            channels = latents.float().transpose(0, 1).flatten(1)
            loss = loss + 0.01 * (channels.mean(1).square() + channels.var(1).add(1e-4).log().square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == start else 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 500 == 0:
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                state_path,
            )
            print(
                f"{state_path.stem} step {step + 1} loss {running:.4f} {time.time() - began:.0f} s",
                flush=True,
            )


@torch.no_grad()
def encode_all(model: AutoencoderTiny, pixels: np.ndarray) -> torch.Tensor:
    """Unscaled latents of [P, 64, 64, 3] uint8 pictures: [P, 16, 16, 16] float32."""
    return torch.cat([model.encode(to_tensor(pixels[i : i + 64])).latents for i in range(0, len(pixels), 64)])


@torch.no_grad()
def decode_all(model: AutoencoderTiny, latents: torch.Tensor) -> np.ndarray:
    """Unscaled latents -> [P, 64, 64, 3] uint8."""
    return np.concatenate([to_pixels(model.decode(part.float()).sample) for part in latents.split(64)])
