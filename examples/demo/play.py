"""The story: a cluster, the operator, a run, two nodes taken from it, its LoRA tried, and all of it deleted."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from examples.demo import stagehands
from examples.demo.account import Interruption, attempt_of, interruption, worth_disturbing
from examples.demo.children import Child
from examples.demo.error import DemoError
from examples.demo.screen import Screen
from examples.demo.stagehands import CAPTIONS, command_line, shown
from examples.demo.watching import Watching
from examples.stage import DATA, LORAS, MODELS, REPOSITORY, Stage
from localcluster.cluster import Cluster

NAME = "timber"
POOL, PRODUCT = "spot-a10g", "NVIDIA-A10G"
NOTICE = 30.0
"""Seconds of notice. EC2 gives 120; the trainer needs few of them."""
LOOK = 0.5
NODE_GONE = 5.0
"""Seconds after which a killed machine's Node object goes, as a cloud's controller sees to it."""
START, TRAIN, RECOVER, PAINT, DELETE = 120.0, 600.0, 180.0, 180.0, 240.0
"""The longest waits for: the first step, the next event in training, the gap, the pictures, the end."""


class Fault(NamedTuple):
    """A way in which a node is taken."""

    attempt: int
    node: str
    replacement: str
    strike: Callable[[], None]
    words: str
    latest: float
    """The part of all steps from which on it is now or never."""


class Play:
    """One performance. `perform` plays it; whatever it started is ended by whoever ends the cluster."""

    def __init__(self, cluster: Cluster, screen: Screen, folder: Path, *, keep: bool) -> None:
        self._cluster, self._screen, self._folder, self._keep = cluster, screen, folder, keep
        self._stage = Stage(cluster)
        self._run = yaml.safe_load(stagehands.TIMBER.read_text())
        self._status: dict[str, Any] = {}

    def perform(self) -> None:
        """Play from the beginning to the end. Raises DemoError, and what the cluster raises."""
        model = self._folder / "tiny-sdxl"
        with stagehands.built_model(model) as builder:
            self._raise_cluster()
            self._install()
            self._fill(builder, model)
        self._add_node("gpu-1")
        self._cluster.add_node("cpu-1", cloud="eks-karpenter", pool="system")
        self._kubectl("get", "nodes", "-L", "karpenter.sh/capacity-type,nvidia.com/gpu.product")
        self._train()
        lora = self._fetch_lora()
        self._paint(model, lora)
        self._show_the_way()
        if not self._keep:
            self._delete()

    # The scene

    def _raise_cluster(self) -> None:
        screen = self._screen
        screen.section("A Kubernetes on this machine")
        screen.note(
            "etcd, kube-apiserver, kube-scheduler, kube-controller-manager and an S3 server (versitygw): the upstream "
            "programs, as plain processes. No containers, no root. Nodes are played, all else is real."
        )
        self._cluster.start()
        screen.say("The control plane is ready. To look in from another terminal while the demo goes on:")
        self._show_environment()

    def _show_environment(self) -> None:
        self._screen.command(f"export KUBECONFIG={self._cluster.kubeconfig}")
        if not shutil.which("kubectl"):
            self._screen.command(f"alias kubectl={self._cluster.kubectl_program}")

    def _install(self) -> None:
        self._screen.section("The operator")
        self._stage.install()
        self._stage.start_operator()
        self._screen.say(
            "The chart's objects are installed and the operator is ready. It runs beside the cluster with the token of "
            "the chart's ServiceAccount, so it may do what its role says and nothing more."
        )

    def _fill(self, builder: Child, model: Path) -> None:
        self._screen.section("Photographs, a base model, nodes")
        pictures, captions = stagehands.fill_buckets(self._stage, self._folder / "photographs")
        self._screen.say(
            f"{pictures} photographs that scikit-image ships, {captions} with a caption of its own, are in "
            f"s3://{DATA}/{stagehands.DATASET_PREFIX}"
        )
        files = stagehands.put_model(self._stage, builder, model)
        size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        self._screen.say(
            f"A tiny SDXL with random weights ({files} files, {size / 1e6:.0f} MB) is in "
            f"s3://{MODELS}/{stagehands.MODEL_PREFIX} and stands in for the real one, which needs a GPU."
        )

    def _add_node(self, name: str) -> None:
        self._cluster.add_node(
            name, cloud="eks-karpenter", capacity_type="spot", pool=POOL, gpus=1, product=PRODUCT, gpu_memory_gib=24
        )

    def _kubectl(self, *arguments: str | Path, timeout: float = 60.0) -> None:
        """Run kubectl and show command and output."""
        self._screen.command("kubectl " + " ".join(shown(a) if isinstance(a, Path) else a for a in arguments))
        for line in self._cluster.kubectl(*arguments, timeout=timeout).splitlines():
            self._screen.row(line)

    # The run

    def _train(self) -> None:
        screen = self._screen
        screen.section("A run")
        manifest = self._folder / "timber.yaml"
        manifest.write_text(stagehands.filled_run(self._cluster.s3.endpoint))
        self._kubectl("apply", "-f", stagehands.POOLS)
        screen.command("kubectl apply -f examples/secret.yaml    (with the keys of this S3 server)")
        screen.row(self._cluster.kubectl("apply", "-f", "-", stdin=stagehands.filled_secret(self._cluster.s3)))
        self._kubectl("apply", "-f", manifest)
        training, checkpoint = self._run["spec"]["training"], self._run["spec"]["checkpoint"]
        screen.note(
            f"{training['steps']} steps, a checkpoint every {checkpoint['everySteps']}, on spot nodes. examples/demo/"
            "timber.yaml is this manifest; only the S3 server's address was put in."
        )
        screen.say(f"From here on, the lines without a time are those of kubectl get lft {NAME} -w")
        screen.command(f"kubectl get lft {NAME} -w")
        faults = self._cluster.faults
        with Watching(self._cluster, NAME, screen) as watching:
            for fault in (
                Fault(
                    1, "gpu-1", "gpu-2", lambda: faults.preempt("gpu-1", NOTICE),
                    f"gpu-1 is reclaimed with {NOTICE:.0f} s notice, as EC2 and Karpenter do it (with 120 s)", 0.5,
                ),
                Fault(
                    2, "gpu-2", "gpu-3", lambda: faults.kill("gpu-2", delete_node_after=NODE_GONE),
                    "gpu-2 is gone, without notice: SIGKILL to everything on it, as when the power fails", 0.85,
                ),
            ):  # fmt: skip
                self._disturb(watching, fault)
            watching.until("for the LoRA to be verified", lambda: watching.status.get("phase") == "Succeeded", TRAIN)
            self._status = watching.status
        screen.say(f"Done. The operator has verified the artifact in storage: {self._status['message']}")
        self._show_attempts()

    def _disturb(self, watching: Watching, fault: Fault) -> None:
        screen, steps = self._screen, int(self._run["spec"]["training"]["steps"])
        every = int(self._run["spec"]["checkpoint"]["everySteps"])
        latest = int(fault.latest * steps)
        watching.until(
            f"for attempt {fault.attempt} to train",
            lambda: attempt_of(watching.status, fault.attempt).get("toStep", 0) > 0, START,
        )  # fmt: skip
        watching.until(
            f"for attempt {fault.attempt} to be past a checkpoint",
            lambda: worth_disturbing(watching.status, fault.attempt, every=every, latest=latest)
            or attempt_of(watching.status, fault.attempt).get("cause"), TRAIN,
        )  # fmt: skip
        if attempt_of(watching.status, fault.attempt).get("cause"):
            raise DemoError(
                f"attempt {fault.attempt} was over before {fault.node} could be taken: set more training.steps in "
                f"{shown(stagehands.TIMBER)}"
            )
        screen.say(f"{fault.words}.")
        struck = time.monotonic()
        fault.strike()
        watching.until(
            f"for the pod of attempt {fault.attempt + 1}",
            lambda: attempt_of(watching.status, fault.attempt + 1), RECOVER,
        )  # fmt: skip
        screen.say(
            f"The pod of attempt {fault.attempt + 1} is there and finds no node. The demo plays the autoscaler and "
            f"brings {fault.replacement} (a cloud takes a minute or more for that)."
        )
        self._add_node(fault.replacement)
        told = watching.until(
            f"for attempt {fault.attempt + 1} to train",
            lambda: interruption(watching.moments, fault.attempt, struck), RECOVER,
        )  # fmt: skip
        self._tell(told, every)

    def _tell(self, told: Interruption, every: int) -> None:
        if told.lost:
            lost = (
                f"Lost: {told.lost} step{'' if told.lost == 1 else 's'}. Attempt {told.attempt} told of step "
                f"{told.reached}, attempt {told.attempt + 1} goes on from the checkpoint at {told.resumed}; "
                f"at most checkpoint.everySteps, {every}, can be lost."
            )
        else:
            lost = (
                f"Lost: nothing. Attempt {told.attempt} saved step {told.resumed} within the notice, and attempt "
                f"{told.attempt + 1} goes on from it."
            )
        self._screen.say(
            f"{lost} Gap: {told.gap:.1f} s without training, {told.to_pod:.1f} s until the pod of attempt "
            f"{told.attempt + 1} was there and {told.to_training:.1f} s until its first step."
        )

    def _show_attempts(self) -> None:
        for one in self._status["attempts"]:
            self._screen.row(
                f"attempt {one['number']} on {one.get('node', 'no node')}: steps {one.get('fromStep', 0)} to "
                f"{one.get('toStep', 0)}, {one['cause']}: {one['message']}"
            )
        self._screen.row(
            f"cost {self._status['cost']}, {self._status.get('saved', '0%')} less than on demand, "
            f"{self._status['preemptions']} preemptions"
        )

    # The LoRA

    def _fetch_lora(self) -> Path:
        self._screen.section("The LoRA, in diffusers")
        artifact = self._status["artifact"]
        key = f"{artifact['uri']}{artifact['file']}".removeprefix(f"s3://{LORAS}/")
        path = self._folder / "pytorch_lora_weights.safetensors"
        self._cluster.s3.client().download_file(LORAS, key, str(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != artifact["sha256"]:
            raise DemoError(f"{shown(path)} has the SHA-256 {digest}, but the status says {artifact['sha256']}")
        self._screen.say(
            f"Downloaded to {shown(path)} ({path.stat().st_size} bytes); its SHA-256 is that in the status."
        )
        return path

    def _paint(self, model: Path, lora: Path) -> None:
        prompt = CAPTIONS["chelsea"]
        log = self._folder / "logs" / "pictures.log"
        answer: list[str] = []
        command: list[str | Path] = [sys.executable, "-m", "examples.demo.pictures", model, lora, self._folder, prompt]
        with Child(command, errors=log, folder=REPOSITORY, on_line=answer.append) as painter:
            code = painter.wait(PAINT, f"the pictures were not painted within {PAINT:.0f} s: see {shown(log)}")
        if code != 0 or not answer:
            raise DemoError(f"the LoRA could not be tried in diffusers: see {shown(log)}")
        difference = json.loads(answer[-1])["difference"]
        self._screen.say(
            f"Painted with StableDiffusionXLPipeline, the same prompt and seed without and with the LoRA: "
            f"{shown(self._folder / 'before-and-after.png')}. They differ by {difference:.1%} of the range on average."
        )
        self._screen.note(
            "The tiny model has random weights, so both pictures are abstract: they show that the LoRA loads and "
            "changes what is painted, not that it paints a cat."
        )

    # The end

    def _show_the_way(self) -> None:
        screen, prefix = self._screen, self._status["prefix"]
        screen.section("Where everything is")
        screen.note(f"LoRA and pictures: {shown(self._folder)}/; the run's objects: {prefix}; manifests: examples/")
        for line in self._listing(prefix):
            screen.row(line)
        if self._keep:
            screen.note("To look for yourself:")
        else:
            screen.note("To look for yourself (with make demo KEEP=1, which leaves all of it up):")
        self._show_environment()
        for text in (
            "kubectl get lft -o wide", f"kubectl describe lft {NAME}", "kubectl explain lft.spec.training",
            "kubectl get pods,nodes,gpupools", f"kubectl delete lft {NAME}",
            command_line("objects", "--name", self._cluster.name, prefix),
        ):  # fmt: skip
            screen.command(text)

    def _listing(self, prefix: str) -> list[str]:
        return [f"{size:>9}  {key}" for key, size in self._cluster.s3.objects(prefix)]

    def _delete(self) -> None:
        screen, prefix, cluster = self._screen, self._status["prefix"], self._cluster
        screen.section("Deleted")
        screen.command(f"kubectl delete lft {NAME}")
        delete: list[str | Path] = [cluster.kubectl_program, "--kubeconfig", cluster.kubeconfig]
        delete += ["delete", "lft", NAME, f"--timeout={DELETE:.0f}s"]
        said = self._status["message"]
        log = self._folder / "logs" / "delete.log"
        with Child(delete, on_line=screen.row, errors=log) as child:
            while child.running:
                wanted = ["get", "lft", NAME, "--ignore-not-found", "-o", "jsonpath={.status.message}"]
                message = cluster.kubectl(*wanted)
                if message and message != said:
                    said = message
                    screen.say(f"The run says: {message}")
                time.sleep(LOOK)
            if child.wait(1.0, "kubectl does not end") != 0:
                raise DemoError(f"the run was not deleted within {DELETE:.0f} s ({said}): see {shown(log)}")
        left = self._listing(prefix)
        if left:
            raise DemoError(f"{len(left)} objects are left in {prefix}")
        screen.say(f"{prefix} is empty: checkpoints, artifact and all else are gone, as onDelete: DeleteAll says.")
