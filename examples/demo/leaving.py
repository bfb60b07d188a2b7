"""The end: where everything is, how to look for oneself, and the run deleted with all its objects."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from examples.demo.children import Child
from examples.demo.error import DemoError
from examples.demo.scene import NAME, Scene
from examples.demo.stagehands import command_line, shown
from examples.stage import Stage

DELETE = 240.0
"""Seconds that deleting may take: a lost node's trainer is given its longest save time."""
LOOK = 0.5


def show_the_way(scene: Scene, stage: Stage, status: Mapping[str, Any]) -> None:
    """Print where everything is and the commands to look for oneself."""
    screen, prefix = scene.screen, status["prefix"]
    screen.note(f"LoRA and pictures: {shown(scene.folder)}/; manifests: examples/; the run's objects: {prefix}")
    for line in _listing(scene, prefix):
        screen.row(line)
    if scene.keep:
        screen.note("To look for yourself:")
    else:
        screen.note("To look for yourself (make demo KEEP=1 leaves all of it up for that):")
    scene.show_environment()
    for text in (
        "kubectl get lft -o wide",
        f"kubectl describe lft {NAME}",
        "kubectl explain lft.spec.training",
        "kubectl get pods,nodes,gpupools",
        f"curl {stage.metrics_url}",
        f"less {shown(stage.operator_log)}",
        command_line("objects", "--name", scene.cluster.name, prefix),
        f"kubectl delete lft {NAME}",
    ):
        screen.command(text)


def delete(scene: Scene, status: Mapping[str, Any]) -> None:
    """Delete the run, say what it waits for meanwhile, and show that nothing is left. Raises DemoError."""
    screen, prefix, said = scene.screen, status["prefix"], status["message"]
    screen.command(f"kubectl delete lft {NAME}")
    command = scene.kubectl_command("delete", "lft", NAME, f"--timeout={DELETE:.0f}s")
    log = scene.folder / "logs" / "delete.log"
    with Child(command, on_line=screen.row, errors=log) as child:
        while child.running:
            message = scene.cluster.kubectl(
                "get", "lft", NAME, "--ignore-not-found", "-o", "jsonpath={.status.message}"
            )
            if message and message != said:
                said = message
                screen.say(f"The run says: {message}")
            time.sleep(LOOK)
        if child.wait(1.0, "kubectl does not end") != 0:
            raise DemoError(f"the run was not deleted within {DELETE:.0f} s ({said}): see {shown(log)}")
    left = _listing(scene, prefix)
    if left:
        raise DemoError(f"{len(left)} objects are left in {prefix}")
    screen.say(f"{prefix} is empty: checkpoints, artifact and all else are gone, as onDelete: DeleteAll says.")


def _listing(scene: Scene, prefix: str) -> list[str]:
    return [f"{size:>9}  {key}" for key, size in scene.cluster.s3.objects(prefix)]
