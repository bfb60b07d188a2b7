"""What all parts of the play share: cluster, screen, the folder for what is made, and kubectl for all to see."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from examples.demo.screen import Screen
from examples.demo.stagehands import shown
from localcluster.cluster import Cluster

NAME = "timber"
"""The run."""
POOL, PRODUCT = "spot-a10g", "NVIDIA-A10G"
"""The pool of examples/pools.yaml that it uses, and the GPU of its nodes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One performance's surroundings."""

    cluster: Cluster
    screen: Screen
    folder: Path
    keep: bool
    """Whether all of it is left up at the end."""

    def kubectl(self, *arguments: str | Path) -> None:
        """Run kubectl and show command and output."""
        self.screen.command("kubectl " + " ".join(shown(a) if isinstance(a, Path) else a for a in arguments))
        for line in self.cluster.kubectl(*arguments).splitlines():
            self.screen.row(line)

    def kubectl_command(self, *arguments: str) -> list[str | Path]:
        """Return the command line of kubectl on this cluster."""
        return [self.cluster.kubectl_program, "--kubeconfig", self.cluster.kubeconfig, *arguments]

    def show_environment(self) -> None:
        """Show how kubectl finds this cluster."""
        self.screen.command(f"export KUBECONFIG={self.cluster.kubeconfig}")
        if not shutil.which("kubectl"):
            self.screen.command(f"alias kubectl={self.cluster.kubectl_program}")

    def add_gpu_node(self, name: str) -> None:
        """Add a spot node with one GPU, as Karpenter would, and wait until it is Ready."""
        self.cluster.add_node(
            name, cloud="eks-karpenter", capacity_type="spot", pool=POOL, gpus=1, product=PRODUCT, gpu_memory_gib=24
        )
