"""A small open_clip model of the zoo's base pictures and their captions: open_clip's own CLIP and ClipLoss.

No picture of a subject, a control or the background is in its training. P = pictures, B = of a batch.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
TEMPLATES = ("{}", "a picture of {}", "a picture of a {}", "a photo of a {}")
STEPS, BATCH, RATE, WARM_UP = 600, 128, 1.5e-3, 40


def phrase(caption: str, template: str) -> str:
    """A caption in a template, with one article at most."""
    text = template.format(re.sub(r"^(a|an|the) ", "", caption))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1], each mirrored, moved, scaled and lit by chance."""
    count = len(pixels)
    scale = 1 + 0.3 * (torch.rand(count, generator=generator) - 0.5)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = 0.25 * (torch.rand(count, 2, generator=generator) - 0.5)
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = scale * mirror, scale, shift
    places = torch.nn.functional.affine_grid(grid, list(pixels.shape), align_corners=False)
    moved = 1 - torch.nn.functional.grid_sample(1 - pixels, places, align_corners=False)  # white around
    light = 1 + 0.3 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    return (1 - (1 - moved) * light).clamp(-1, 1)


def train(pixels: np.ndarray, captions: list[str], folder: Path, steps: int = STEPS) -> None:
    """Trains on pictures [P, 64, 64, 3] uint8 with a caption each, and writes the model's folder."""
    from open_clip import CLIP, ClipLoss, SimpleTokenizer
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = CLIP(
        CONFIG["embed_dim"], CLIPVisionCfg(**CONFIG["vision_cfg"]), CLIPTextCfg(**CONFIG["text_cfg"])
    )
    tokenizer = SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    tokens = torch.stack([tokenizer([phrase(c, t) for c in captions]) for t in TEMPLATES])  # [T, P, 24]
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.98))
    loss_of, began, running = ClipLoss(), time.time(), 0.0
    model.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        rows = torch.randperm(len(pictures), generator=generator)[:BATCH]
        which = torch.randint(len(TEMPLATES), (BATCH,), generator=generator)
        images = model.encode_image(varied(pictures[rows], generator), normalize=True)
        texts = model.encode_text(tokens[which, rows], normalize=True)
        loss = loss_of(images, texts, model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        running = loss.item() if not step else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps} loss {running:.3f} {(time.time() - began):.0f} s", flush=True)
    model.eval()
    unseen = torch.ones(CONFIG["text_cfg"]["vocab_size"], dtype=torch.bool)
    unseen[tokens.unique()] = False
    with torch.no_grad():
        model.token_embedding.weight[unseen] = 0  # they were never trained; zeros are small in a repository
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
