"""Entries as every hub has them that cannot be scanned, made from the zoo's files. Standard library only.

The bytes of each differ from those of every good checkpoint, because the SHA256 identifies a checkpoint.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> (dtype, shape, little-endian bytes)


def read_safetensors(path: Path) -> Tensors:
    """Every tensor of a small safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {n: (t["dtype"], tuple(t["shape"]), data[slice(*t["data_offsets"])]) for n, t in header.items()}


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Writes a complete safetensors file, and creates its folder."""
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def encoded_header(entries: object) -> bytes:
    """The start of a safetensors file whose header is that JSON, whatever it is."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def small_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Float16 tensors of those shapes: small random numbers, so that no two files are the same."""
    source = random.Random(seed)

    def content(shape: tuple[int, ...]) -> bytes:
        count = 1
        for n in shape:
            count *= n
        return b"".join(struct.pack("<e", source.gauss(0, 0.01)) for _ in range(count))

    return {name: ("F16", shape, content(shape)) for name, shape in shapes.items()}


def lora_shapes(width: int = 32, context: int = 96, rank: int = 4) -> dict[str, tuple[int, ...]]:
    """A small LoRA in diffusers style: one attention block of `width` channels over a text of `context`
    numbers.
    """
    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    return {
        f"{block}.to_k.lora_A.weight": (rank, context),
        f"{block}.to_k.lora_B.weight": (width, rank),
        f"{block}.to_q.lora_A.weight": (rank, width),
        f"{block}.to_q.lora_B.weight": (width, rank),
    }


def sdxl_lora_shapes(rank: int = 4) -> dict[str, tuple[int, ...]]:
    """A LoRA in kohya style with the keys and the context width of SDXL."""
    unet = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    text = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    return {
        f"{unet}.lora_down.weight": (rank, 2048),
        f"{unet}.lora_up.weight": (640, rank),
        f"{text}.lora_down.weight": (rank, 1280),
        f"{text}.lora_up.weight": (1280, rank),
    }


def write_card(folder: Path, **fields: object) -> None:
    """A README whose front matter holds the fields, as the diffusers training scripts write it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]  # JSON is YAML
    (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n\n# A fine-tuned model\n")


def write_pickle(path: Path) -> None:
    """A torch-style archive: a zip file with a pickle inside. This one holds numbers and is harmless."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {"weight": [0.0, 1.0]}}, protocol=2))
        archive.writestr("archive/version", "3\n")


def troublesome_repositories(zoo: Path, into: Path) -> dict[str, Path]:
    """Five repositories that are skipped, each for another reason, by name."""
    listing = json.loads((zoo / "zoo.json").read_text())
    base = listing["base_repo"]
    loras = [zoo / c["path"] for c in listing["checkpoints"] if c["kind"] == "lora"]
    lora = next(path for folder in loras for path in folder.glob("*.safetensors"))
    tags = ["text-to-image", "diffusers", "lora", "diffusers-training", "stable-diffusion"]
    stated = {
        "license": "cc0-1.0",
        "library_name": "diffusers",
        "instance_prompt": "a photo of sks",
        "tags": tags,
    }
    repos = {
        f"trouble/{name}": into / name
        for name in (
            "pickled-dreambooth",
            "corrupt-lora",
            "lora-without-base",
            "lora-of-another-size",
            "kolors-lora",
        )
    }
    pickled, corrupt, baseless, misfit, kolors = repos.values()
    weights = "pytorch_lora_weights.safetensors"

    write_card(
        pickled, base_model=base, **stated | {"tags": ["text-to-image", "dreambooth", "diffusers-training"]}
    )
    write_pickle(pickled / "dreambooth.ckpt")
    write_card(corrupt, base_model=base, **stated)
    (corrupt / weights).write_bytes(lora.read_bytes()[: lora.stat().st_size * 2 // 3])
    write_card(baseless, **stated)
    write_safetensors(baseless / weights, read_safetensors(lora), {"format": "pt", "note": "uploaded again"})
    write_card(misfit, base_model=base, **stated)
    write_safetensors(misfit / weights, small_tensors(lora_shapes(width=320, context=768)))
    write_card(kolors, base_model="Kwai-Kolors/Kolors", **stated)
    write_safetensors(
        kolors / "sks_kolors.safetensors",
        small_tensors(sdxl_lora_shapes()),
        {"ss_base_model_version": "kolors"},
    )
    return repos
