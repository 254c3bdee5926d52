"""What is deployed: the cluster's file by Ray's own schema, the manifests, and the commands that they run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray
import yaml

from scanner import settings
from scanner.cli import cli

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
FILES = [ROOT / "ray_cluster.yaml", *sorted((ROOT / "deploy").iterdir()), ROOT / "docs/cluster.md"]


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())
    return loaded


def test_the_clusters_file_passes_rays_own_schema_and_every_value_is_commented() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    text = (ROOT / "ray_cluster.yaml").read_text()
    cluster = yaml.safe_load(text)
    jsonschema.validate(cluster, schema)
    assert set(cluster["available_node_types"]) == {"head", "gpu"}
    assert (
        cluster["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    )
    for key in ("max_workers", "idle_timeout_minutes", "upscaling_speed", "head", "gpu"):
        assert re.search(rf"^ *{key}:.*#", text, re.MULTILINE), f"{key} has no comment"


def test_nothing_listens_beyond_loopback_without_a_token() -> None:
    text = (ROOT / "ray_cluster.yaml").read_text()
    starts = [line for line in text.splitlines() if "ray start" in line and line.strip().startswith("-")]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    for job in jobs():
        assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def jobs() -> list[dict[str, Any]]:
    """The specification of the job in each manifest."""
    return [manifest("rayjob.yaml")["spec"], manifest("raycronjob.yaml")["spec"]["jobTemplate"]]


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "job"), ("raycronjob.yaml", "cronjob")])
def test_the_manifests_pass_the_fields_of_kuberays_own_definitions(name: str, kind: str) -> None:
    schema = json.loads((Path(__file__).parent / "kuberay_schema.json").read_text())
    jsonschema.validate(manifest(name)["spec"], schema | {"$ref": f"#/$defs/{kind}"})


def test_a_job_is_submitted_from_within_the_heads_pod_and_only_rays_pods_and_the_operator_reach_it() -> None:
    for job in jobs():
        assert job["submissionMode"] == "SidecarMode"
        assert job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    policy = manifest("networkpolicy.yaml")["spec"]
    ray_pods = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert policy["podSelector"] == ray_pods
    assert policy["policyTypes"] == ["Ingress"]
    within, operator = policy["ingress"]
    assert within == {"from": [{"podSelector": ray_pods}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_manifests_are_of_kuberays_kinds_and_of_our_versions() -> None:
    job, night = manifest("rayjob.yaml"), manifest("raycronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert (night["apiVersion"], night["kind"]) == ("ray.io/v1", "RayCronJob")
    version = re.search(r"^ray==(.*)$", CONSTRAINTS, re.MULTILINE)
    assert version is not None
    for spec in (job["spec"], night["spec"]["jobTemplate"]):
        assert spec["rayClusterSpec"]["rayVersion"] == version[1]
    for path in (ROOT / "ray_cluster.yaml", ROOT / "deploy/Dockerfile"):
        assert f"rayproject/ray:{version[1]}-" in path.read_text()


def commands() -> list[str]:
    """Every `scanner` command that a file of ours runs or shows."""
    found = []
    for path in FILES:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            match = re.search(
                r"(?:^|-- |entrypoint: |head: |/)scanner ((?:crawl|nightly|doctor)\b[^#`']*)", line
            )
            found += [match[1].strip()] if match else []
    return found


def test_there_are_commands_to_check() -> None:
    assert sum(command.startswith("nightly") for command in commands()) >= 4


@pytest.mark.parametrize("words", sorted(set(commands())))
def test_every_command_that_is_deployed_or_shown_is_one_that_we_have(words: str) -> None:
    verb, *options = shlex.split(words)
    command = dict(settings.subcommands(cli))[verb]
    command.make_context(verb, options, resilient_parsing=False)


def test_the_settings_that_the_guide_shows_are_settings(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    file = tmp_path / "scanner.toml"
    file.write_text(block)
    told = settings.default_map(cli, settings.read(file), file)
    assert told["nightly"]["sources"] == ["hf", "civitai"]
    context = click.Context(cli, info_name="scanner", default_map=told)
    night = dict(settings.subcommands(cli))["nightly"].make_context("nightly", [], parent=context)
    assert night.params["limit"] == 20000
    assert night.params["worker_hours"] == 10.0
