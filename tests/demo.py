"""The main job, end to end and offline: what `make demo` runs.

Prints and runs the public commands against a small HuggingFace Hub on loopback that serves the zoo's real
models, at a reduced budget. Checks at the end that what came out is what must come out.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "tests" / "zoo"
BIN = Path(sys.executable).parent
OUT = ROOT / "build" / "demo"
STRONG = 200  # steps an image: the bound that tests/zoo/README.md wrote down before anything was measured
BUDGET = ["--samples-per-image", "20", "--steps", "25", "--assume-train-images", "5"]


def run(*words: str, env: dict[str, str], capture: bool = False) -> str:
    """Prints a public command and runs it; a failure ends the demo."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]], env=env, check=False, text=True,
        stdout=subprocess.PIPE if capture else None,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"demo: the command above ended with {done.returncode}")
    return done.stdout or ""


def main() -> None:
    """Serve, ingest, crawl, check."""
    start = time.monotonic()
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.hub import zoo_hub

    store = OUT / f"store-{time.strftime('%Y%m%d-%H%M%S')}"
    shown = os.path.relpath(store, Path.cwd())
    with zoo_hub(ZOO) as hub, hub:
        env = {
            **os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(OUT / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        env.pop("HF_TOKEN", None)
        print(f"A HuggingFace Hub on loopback serves the zoo: HF_ENDPOINT={hub.url}")
        print(f"Reduced budget: {' '.join(BUDGET)} (the method's own is 50, 50 and what the author tells).")
        images = os.path.relpath(ZOO / "images", Path.cwd())
        run("scanner", "corpus", "add", "mine", f"{images}/subjects", "--store", shown, env=env)
        run(
            "scanner", "corpus", "add", "background", f"{images}/background", "--background",
            "--store", shown, env=env,
        )  # fmt: skip
        run("scanner", "crawl", "--source", "hf", "--limit", "100", "--store", shown, *BUDGET, env=env)
        status = run("scanner", "status", "--store", shown, "--json", env=env, capture=True)
    verdicts = {row["repo"]: row for row in json.loads(status)["checkpoints"]}
    wrong = check(verdicts)
    print(f"\ndemo: {len(verdicts)} checkpoints in {time.monotonic() - start:.0f} s, in the store {shown}")
    if wrong:
        sys.exit("demo: not as it must be:\n  " + "\n  ".join(wrong))
    print("demo: every strong checkpoint is flagged, no control is, pickled and corrupt entries are skipped.")
    print(f"\nNext, look at what was flagged:\n\n  .venv/bin/finextract-tui --store {shown}\n")


def check(verdicts: dict[str, dict[str, str]]) -> list[str]:
    """What is not as it must be."""
    zoo = json.loads((ZOO / "zoo.json").read_text())
    wrong = []
    for entry in zoo["checkpoints"]:
        verdict = verdicts[entry["repo"]]["verdict"]
        if entry["control"] and verdict != "nothing_found":
            wrong.append(f"the control {entry['repo']} is {verdict}")
        if not entry["control"] and entry["steps_per_image"] >= STRONG and verdict != "flagged":
            wrong.append(f"the strong checkpoint {entry['repo']} is {verdict}")
    for repo, row in verdicts.items():
        if repo.startswith("trouble/") and (row["verdict"] != "skipped" or not row["reason"]):
            wrong.append(f"{repo} is {row['verdict']}: {row['reason']!r}")
    for word in ("pickle", "damaged"):
        if not any(word in row["reason"] for row in verdicts.values()):
            wrong.append(f"no entry was skipped as {word}")
    return wrong


if __name__ == "__main__":
    main()
