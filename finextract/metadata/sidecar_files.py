"""Sidecar files: the small files that a training run leaves beside its weights. Imports no torch.

`hparams.yml` and `args.json` of the diffusers scripts, `config.yaml` of ai-toolkit, a `train.sh` with the
whole command line, and OneTrainer's configuration, which is in the header of its weights. They are
untrusted: no content raises an error, and no script is ever run.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

from finextract.metadata.training import MAX_IMAGES, MAX_STEPS, Training, resolution_of
from finextract.metadata.untrusted import flag_of, json_of, number_of, text_of, whole_of, yaml_of

MAX_SIDECAR_CHARS = 200_000
MAX_SIDECAR_FILES = 16
# Our field -> the names that training tools have for it. The first name that occurs is used.
_FIELD_NAMES = {
    "caption": ("instance_prompt", "trigger_word"),
    "base_name": ("pretrained_model_name_or_path", "name_or_path", "base_model_name"),
    "num_train_images": ("num_train_images", "num_instance_images"),
    "steps": ("max_train_steps", "steps"),
    "epochs": ("num_train_epochs", "max_train_epochs", "epochs"),
    "batch_size": ("train_batch_size", "batch_size"),
    "resolution": ("resolution",),
    "learning_rate": ("unet_lr", "learning_rate", "lr"),
    "network_dim": ("lora_rank", "rank", "network_dim", "linear"),
    "network_alpha": ("lora_alpha", "network_alpha", "linear_alpha"),
    "clip_skip": ("clip_skip",),
    "mirrored": ("random_flip", "flip_aug", "enable_random_flip", "flip_x"),
}


def parse_sidecar_file(name: str, text: str) -> Training:
    """What one sidecar file states; its name says if it is JSON, YAML or a shell script."""
    text = text[:MAX_SIDECAR_CHARS]
    if name.endswith(".json"):
        stated = _leaves(json_of(text))
    elif name.endswith((".yml", ".yaml")):
        stated = _leaves(yaml_of(text))
    else:
        stated = _options(text)
    found = {
        field: next((stated[n] for n in names if n in stated), None) for field, names in _FIELD_NAMES.items()
    }
    accumulated = whole_of(stated.get("gradient_accumulation_steps"), 1, 100_000) or 1
    batch = whole_of(found["batch_size"], 1, MAX_IMAGES)
    return Training(
        caption=text_of(found["caption"]),
        base_name=text_of(found["base_name"]),
        num_train_images=whole_of(found["num_train_images"], 1, MAX_IMAGES - 1),
        steps=whole_of(found["steps"], 1, MAX_STEPS),
        epochs=whole_of(found["epochs"], 1, MAX_STEPS),
        batch_size=batch and batch * accumulated,
        resolution=resolution_of(found["resolution"]),
        learning_rate=number_of(found["learning_rate"], 0, 1e3),
        network_dim=whole_of(found["network_dim"], 1, 100_000),
        network_alpha=number_of(found["network_alpha"], 0, 1e6),
        clip_skip=whole_of(found["clip_skip"], 0, 100),
        mirrored=flag_of(found["mirrored"]),
    )


def parse_sidecar_files(texts: Mapping[str, str]) -> Training:
    """What several sidecar files state, name -> text; the first one that states a field is believed."""
    stated = Training()
    for name, text in list(texts.items())[:MAX_SIDECAR_FILES]:
        stated = stated.or_else(parse_sidecar_file(name, text))
    return stated


def _leaves(value: object) -> dict[str, object]:
    """Names and values of a nested configuration, the outermost of each name; at most 10,000 are read."""
    leaves: dict[str, object] = {}
    waiting: deque[tuple[str, object]] = deque([("", value)])
    for _ in range(10_000):
        if not waiting:
            break
        name, value = waiting.popleft()
        if isinstance(value, dict):
            waiting.extend((str(n)[:100], v) for n, v in value.items())
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            waiting.extend((name, v) for v in value)
        else:
            leaves.setdefault(name, value)
    return leaves


_WORD = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"'\\]+)"""
_OPTION = re.compile(rf"--(\w{{1,60}})[= ] *(?!--)({_WORD})")
_SWITCH = re.compile(r"--(\w{1,60})(?=[ \t]*(?:\\?$|--))", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_ASSIGNED = re.compile(rf"^[ \t]*(?:export[ \t]+)?(\w{{1,60}})=({_WORD})[ \t]*$", re.MULTILINE)


def _options(text: str) -> dict[str, object]:
    """The long options in a script's command lines; variables that the script sets are replaced.

    An option without a value is True.
    """
    variables = {name: value.strip("\"'") for name, value in _ASSIGNED.findall(text)}
    stated: dict[str, object] = {}
    for name, value in _OPTION.findall(text):
        value = re.sub(
            r"\$\{?(\w+)\}?", lambda m: variables.get(m[1], m[0])[:1_000], value.strip("\"'")[:4_000]
        )
        if "$" not in value:
            stated.setdefault(name, value[:4_000])
    return dict.fromkeys(_SWITCH.findall(text), True) | stated
