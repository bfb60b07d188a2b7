"""The story: a cluster, the operator, a run, two nodes taken from it, its LoRA tried, and all of it deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from examples.demo import leaving, lora, stagehands
from examples.demo.children import Child
from examples.demo.disturbing import TRAIN, disturb, faults
from examples.demo.scene import NAME, Scene
from examples.demo.watching import Watching
from examples.stage import DATA, MODELS, Stage


def perform(scene: Scene) -> None:
    """Play from the beginning to the end. Raises DemoError, and what the cluster raises.

    What it starts is ended by itself, or ends with the cluster, which is its caller's.
    """
    screen, model = scene.screen, scene.folder / "tiny-sdxl"
    stage = Stage(scene.cluster)
    with stagehands.built_model(model) as builder:
        screen.section("A Kubernetes on this machine")
        _raise_cluster(scene)
        screen.section("The operator")
        _install(scene, stage)
        screen.section("Photographs, a base model, nodes")
        _fill(scene, stage, builder, model)
    screen.section("A run")
    _apply(scene)
    status = _train(scene)
    screen.section("The LoRA, in diffusers")
    lora.paint(scene, model, lora.fetch(scene, status["artifact"]))
    screen.section("Where everything is")
    leaving.show_the_way(scene, stage, status)
    if not scene.keep:
        screen.section("Deleted")
        leaving.delete(scene, status)


def _raise_cluster(scene: Scene) -> None:
    scene.screen.note(
        "etcd, kube-apiserver, kube-scheduler, kube-controller-manager and an S3 server (versitygw): the upstream "
        "programs, as plain processes. No containers, no root. Nodes are played, all else is real."
    )
    scene.cluster.start()
    scene.screen.say("To look in from another terminal while the demo goes on:")
    scene.show_environment()


def _install(scene: Scene, stage: Stage) -> None:
    stage.install()
    stage.start_operator()
    scene.screen.say(
        "The chart's objects are installed and the operator is ready. It runs beside the cluster with the token of the "
        "chart's ServiceAccount, so it may do what its role says and nothing more."
    )
    scene.screen.note("What it counts and measures meanwhile, in Prometheus' words (docs/metrics.md):")
    scene.screen.command(f"curl {stage.metrics_url}")


def _fill(scene: Scene, stage: Stage, builder: Child, model: Path) -> None:
    pictures, captions = stagehands.fill_buckets(stage, scene.folder / "photographs")
    scene.screen.say(
        f"{pictures} photographs that scikit-image ships, {captions} with a caption of its own, are in "
        f"s3://{DATA}/{stagehands.DATASET_PREFIX}"
    )
    files = stagehands.put_model(stage, builder, model)
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    scene.screen.say(
        f"A tiny SDXL with random weights ({files} files, {size / 1e6:.0f} MB) is in "
        f"s3://{MODELS}/{stagehands.MODEL_PREFIX} and stands in for the real one, which needs a GPU."
    )
    scene.add_gpu_node("gpu-1")
    scene.cluster.add_node("cpu-1", cloud="eks-karpenter", pool="system")
    scene.kubectl("get", "nodes", "-L", "karpenter.sh/capacity-type,nvidia.com/gpu.product")


def _apply(scene: Scene) -> None:
    screen, access = scene.screen, scene.cluster.s3
    manifest = scene.folder / "timber.yaml"
    manifest.write_text(stagehands.filled_run(access.endpoint))
    scene.kubectl("apply", "-f", stagehands.POOLS)
    screen.command("kubectl apply -f examples/secret.yaml    (with the keys of this S3 server)")
    screen.row(scene.cluster.kubectl("apply", "-f", "-", stdin=stagehands.filled_secret(access)))
    scene.kubectl("apply", "-f", manifest)
    spec = _spec()
    screen.note(
        f"{spec['training']['steps']} steps, a checkpoint every {spec['checkpoint']['everySteps']}, on spot nodes. "
        "examples/demo/timber.yaml is this manifest; only the S3 server's address was put in."
    )


def _train(scene: Scene) -> dict[str, Any]:
    """Watch the run to its end, with two nodes taken on the way, and return its last status."""
    screen, spec = scene.screen, _spec()
    steps, every = int(spec["training"]["steps"]), int(spec["checkpoint"]["everySteps"])
    screen.say("The lines without a time are kubectl's from here on.")
    screen.command(f"kubectl get lft {NAME} -w")
    with Watching(scene, NAME) as watching:
        for fault in faults(scene):
            disturb(scene, watching, fault, steps=steps, every=every)
        watching.until("for the verified LoRA", lambda: watching.status.get("phase") == "Succeeded", TRAIN)
        status = watching.status
    screen.say(f"Done, and verified in storage: {status['message']}")
    for one in status["attempts"]:
        screen.row(
            f"attempt {one['number']} on {one.get('node', 'no node')}, steps {one.get('fromStep', 0)} to "
            f"{one.get('toStep', 0)}, {one['cause']}: {one['message']}"
        )
    screen.note(f"It cost {status['cost']}, {status.get('saved', '0%')} less than on demand.")
    return status


def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(stagehands.TIMBER.read_text())["spec"]
    return spec
