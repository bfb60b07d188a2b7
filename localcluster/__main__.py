"""The command line: `python -m localcluster COMMAND`, see `--help`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from localcluster import binaries, control
from localcluster.binaries import BuildError
from localcluster.clouds import CLOUDS
from localcluster.cluster import Cluster
from localcluster.nodespec import ON_DEMAND, SPOT
from localcluster.places import cache_directory

DEFAULT = "default"


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--name", default=DEFAULT, help="the cluster's name; several live side by side")
    which.add_argument("--dir", type=Path, help="its state directory (default: in the cache, by name)")
    again = argparse.ArgumentParser(
        add_help=False
    )  # below `node`: without defaults, which would undo what stands before
    again.add_argument("--name", default=argparse.SUPPRESS, help="the cluster's name")
    again.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help="its state directory")
    main = argparse.ArgumentParser(
        prog="localcluster",
        description="A Kubernetes on this machine: the real control plane, nodes whose pods are processes, a real S3.",
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[which])

    programs = commands.add_parser("programs", help="find or build the upstream programs, and say where they are")
    programs.add_argument("--cluster", action="store_true", help="only those that a cluster runs (not helm)")
    up = add("up", "start a cluster; it runs in the background until `down`")
    up.add_argument("--foreground", action="store_true", help="stay here; Ctrl-C ends the cluster")
    up.add_argument("--bucket", action="append", default=[], metavar="BUCKET", help="make this S3 bucket (repeatable)")
    add("down", "end a cluster and every process of it, and remove its files")
    status = add("status", "show what runs")
    status.add_argument("--json", action="store_true", help="for programs")
    add("env", "print the variables by which kubectl and S3 tools find the cluster, for eval")
    objects = add("objects", "list the objects in the S3 server")
    objects.add_argument("uri", metavar="s3://BUCKET/PREFIX")
    kubectl = add("kubectl", "run kubectl as the cluster's administrator")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER, help="after --")
    _node_parsers(add("node", "add or remove nodes"), again)

    preempt = add("preempt", "reclaim a node with notice, as the cloud that it plays shows it")
    preempt.add_argument("--notice", type=float, metavar="SECONDS", help="default: the cloud's own")
    kill = add("kill", "end a node's machine without notice")
    kill.add_argument("--delete-node-after", type=float, metavar="SECONDS", help="then the Node object goes too")
    for command in (preempt, kill):
        command.add_argument("--replace-after", type=float, metavar="SECONDS", help="then another of its pool joins")
        command.add_argument("--wait", action="store_true", help="until all of it is over")
    cut = add("cut", "lose a node silently: no contact with the API server, its pods run on")
    cut.add_argument("--pods", action="store_true", help="cut its pods' routes too")
    heal = add("heal", "bring back a node that was cut off or killed")
    drain = add("drain", "cordon a node and evict its pods through the eviction API")
    drain.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    for command in (preempt, kill, cut, heal, drain):
        command.add_argument("node", metavar="NODE")
    return main


def _node_parsers(node: argparse.ArgumentParser, which: argparse.ArgumentParser) -> None:
    commands = node.add_subparsers(dest="node_command", required=True, metavar="add|remove")
    add = commands.add_parser("add", help="add a node", parents=[which])
    add.add_argument("node", metavar="NODE")
    add.add_argument("--cloud", choices=list(CLOUDS), default="generic", help="the cloud that it plays")
    kind = add.add_mutually_exclusive_group()
    kind.add_argument("--spot", dest="capacity_type", action="store_const", const=SPOT, default=ON_DEMAND)
    kind.add_argument("--on-demand", dest="capacity_type", action="store_const", const=ON_DEMAND)
    add.add_argument("--pool", default="default", help="the value of the cloud's pool label")
    add.add_argument("--gpus", type=int, default=0)
    add.add_argument("--product", default="RTX-4090", help="the GPUs' product label")
    add.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    add.add_argument("--taint", action="append", default=[], metavar="KEY=VALUE:EFFECT")
    add.add_argument("--route", action="append", default=[], metavar="HOST:PORT", help="an address of pods to cut too")
    remove = commands.add_parser("remove", help="end a node and remove its Node object", parents=[which])
    remove.add_argument("node", metavar="NODE")


def exports(cluster: Cluster) -> str:
    """Return shell lines that name the cluster to kubectl and to S3 tools."""
    variables = {"KUBECONFIG": str(cluster.kubeconfig), **cluster.s3.environment}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def up(arguments: argparse.Namespace) -> int:
    """Start a cluster."""
    cluster = Cluster(arguments.name, arguments.dir)
    if arguments.foreground:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        cluster.start(detached=not arguments.foreground)
        for bucket in arguments.bucket:
            cluster.bucket(bucket)
        print(exports(cluster), flush=True)
        if arguments.foreground:
            print("# Ctrl-C ends the cluster", flush=True)
            signal.pause()
    finally:
        if arguments.foreground:
            cluster.stop()
    return 0


def programs(arguments: argparse.Namespace) -> int:
    """Find or build the programs."""
    found = binaries.find_all(binaries.CLUSTER_PROGRAMS if arguments.cluster else binaries.PROGRAMS)
    for name, path in found.items():
        print(f"{name:<26}{path}")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """End a cluster, also one whose supervisor was killed."""
    cluster = Cluster(arguments.name, arguments.dir)
    if not cluster.directory.exists():
        raise control.ControlError(f"no cluster in {cluster.directory}: `localcluster status` names those that run")
    cluster.stop()
    print(f"cluster {cluster.name} is ended")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Show what runs: the named cluster, and the names of others."""
    cluster = Cluster.attach(arguments.name, arguments.dir)
    found = cluster.status()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"cluster {cluster.name} at {cluster.server}, state in {cluster.directory}")
    for name, pid in {**found["control_plane"], "versitygw": found["s3"]}.items():
        print(f"  {name:<26}{'pid ' + str(pid) if pid else 'ended'}")
    for name, guest in found["guests"].items():
        print(f"  {name:<26}{'pid ' + str(guest['pid']) if guest['pid'] else 'ended'}")
    for name, node in found["nodes"].items():
        kind = f"{node['cloud']}, {node['capacity_type']}, pool {node['pool']}, {node['gpus']} GPUs"
        print(f"  node {name:<21}{node['state']:<9}{kind}")
    for fault in found["faults"]:
        print(f"  under way: {fault}")
    others = [path.name for path in (cache_directory() / "clusters").glob("*") if _runs(path)]
    print(f"running clusters: {', '.join(sorted(others)) or cluster.name}")
    return 0


def _runs(directory: Path) -> bool:
    state = control.read_state(directory)
    return state is not None and control.is_alive(state)


def fault(arguments: argparse.Namespace, cluster: Cluster) -> int:
    """Carry out a fault."""
    faults, node = cluster.faults, arguments.node
    if arguments.command == "preempt":
        faults.preempt(node, arguments.notice, replace_after=arguments.replace_after, wait=arguments.wait)
    elif arguments.command == "kill":
        faults.kill(
            node, delete_node_after=arguments.delete_node_after, replace_after=arguments.replace_after,
            wait=arguments.wait,
        )  # fmt: skip
    elif arguments.command == "cut":
        faults.cut(node, pods=arguments.pods)
    elif arguments.command == "heal":
        faults.heal(node)
    else:
        faults.drain(node, timeout=arguments.timeout)
    return 0


def node(arguments: argparse.Namespace, cluster: Cluster) -> int:
    """Add or remove a node."""
    if arguments.node_command == "remove":
        cluster.remove_node(arguments.node)
        return 0
    labels = dict(label.partition("=")[::2] for label in arguments.label)
    cluster.add_node(
        arguments.node, cloud=arguments.cloud, capacity_type=arguments.capacity_type, pool=arguments.pool,
        gpus=arguments.gpus, product=arguments.product, labels=labels, taints=arguments.taint, routes=arguments.route,
    )  # fmt: skip
    print(f"node {arguments.node} is Ready")
    return 0


def main() -> int:
    """Run one command; errors are one line that says what to do."""
    arguments = parser().parse_args()
    try:
        alone = {"up": up, "down": down, "status": status, "programs": programs}
        if arguments.command in alone:
            return alone[arguments.command](arguments)
        cluster = Cluster.attach(arguments.name, arguments.dir)
        if arguments.command == "env":
            print(exports(cluster))
            return 0
        if arguments.command == "objects":
            for key, size in cluster.s3.objects(arguments.uri):
                print(f"{size:>12}  {key}")
            return 0
        if arguments.command == "kubectl":
            words = arguments.arguments[1:] if arguments.arguments[:1] == ["--"] else arguments.arguments
            command = cluster.kubectl_command
            os.execv(command[0], [*command, *words])
        return (node if arguments.command == "node" else fault)(arguments, cluster)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (control.ControlError, BuildError, OSError) as error:
        print(f"localcluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
