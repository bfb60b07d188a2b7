"""Sets the demo's scene and clears it: names and folders, manifests filled in, buckets filled, logs kept on failure."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.demo.children import Child
from examples.demo.error import DemoError
from examples.stage import DATA, LORAS, MODELS, REPOSITORY, Stage, photographs
from localcluster import control
from localcluster.cluster import Cluster
from localcluster.places import cluster_directory
from localcluster.s3 import S3Access

EXAMPLES = REPOSITORY / "examples"
POOLS = EXAMPLES / "pools.yaml"
SECRET = EXAMPLES / "secret.yaml"
TIMBER = EXAMPLES / "demo" / "timber.yaml"
ENDPOINT = "http://127.0.0.1:9000"
"""Stands in timber.yaml for the address of the S3 server."""
ACCESS_KEY, SECRET_KEY = "put-your-access-key-here", "put-your-secret-key-here"
"""Stand in secret.yaml for the keys."""
DATASET_PREFIX, MODEL_PREFIX = "timber/", "tiny-sdxl/"
CAPTIONS = {"chelsea": "photo of a cat in timber style"}
"""Captions of their own, as files beside the photographs; all others have the run's instancePrompt."""
BUILD_SECONDS = 240.0
MOST_DEMOS = 20
LOG_BYTES = 20_000_000
"""Larger logs are not kept."""


def free_name() -> str:
    """Return the first of demo, demo-2, demo-3 ... under which no cluster runs. Raises DemoError."""
    for number in range(1, MOST_DEMOS):
        name = "demo" if number == 1 else f"demo-{number}"
        state = control.read_state(cluster_directory(name))
        if state is None or not control.is_alive(state):
            return name
    raise DemoError(f"{MOST_DEMOS} demos run already: end one with `{command_line('down', '--name', 'demo')}`")


def fresh_folder(name: str) -> Path:
    """Return an empty folder below the checkout's build/."""
    folder = REPOSITORY / "build" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder


def filled_secret(access: S3Access) -> str:
    """Return examples/secret.yaml with the keys of the S3 server."""
    return _filled(SECRET, {ACCESS_KEY: access.access_key, SECRET_KEY: access.secret_key})


def filled_run(endpoint: str) -> str:
    """Return the demo's timber.yaml with the address of the S3 server."""
    return _filled(TIMBER, {ENDPOINT: endpoint})


def _filled(path: Path, values: dict[str, str]) -> str:
    text = path.read_text()
    for placeholder, value in values.items():
        if text.count(placeholder) != 1:
            raise DemoError(f"{shown(path)} should hold {placeholder} once: the demo puts its own value there")
        text = text.replace(placeholder, value)
    return text


@contextmanager
def built_model(folder: Path) -> Iterator[Child]:
    """Build the tiny SDXL in a process of its own, beside whatever goes on."""
    log = folder.parent / "logs" / "tiny-sdxl.log"
    with Child([sys.executable, "-m", "examples.tiny_sdxl", folder], errors=log, folder=REPOSITORY) as child:
        yield child


def fill_buckets(stage: Stage, folder: Path) -> tuple[int, int]:
    """Make the buckets, with photographs and captions in one; return how many of each."""
    for bucket in (MODELS, DATA, LORAS):
        stage.cluster.bucket(bucket)
    pictures = photographs(folder)
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.txt").write_text(caption + "\n")
    stage.put_folder(folder, DATA, DATASET_PREFIX)
    return len(pictures), len(CAPTIONS)


def put_model(stage: Stage, builder: Child, folder: Path) -> int:
    """Put the tiny SDXL into its bucket once it is built; return the number of files. Raises DemoError."""
    log = shown(folder.parent / "logs" / "tiny-sdxl.log")
    if builder.wait(BUILD_SECONDS, f"the tiny model was not built within {BUILD_SECONDS:.0f} s: see {log}") != 0:
        raise DemoError(f"the tiny model could not be built: see {log}")
    return stage.put_folder(folder, MODELS, MODEL_PREFIX)


def keep_logs(cluster: Cluster, folder: Path) -> None:
    """Copy the logs of control plane, operator, nodes and pods, which go with the cluster, to *folder*."""
    for path in (
        *cluster.directory.glob("logs/*.log"),
        *cluster.directory.glob("nodes/**/*.log"),
        *_versitygw(cluster),
    ):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size <= LOG_BYTES:
                target = folder / path.relative_to(cluster.directory).as_posix().removeprefix("logs/").replace("/", "_")
                shutil.copyfile(path, target)


def _versitygw(cluster: Cluster) -> list[Path]:
    return [cluster.directory / "s3" / "versitygw.log"]


def shown(path: Path) -> str:
    """Return a path as people in the checkout would write it."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def command_line(*arguments: str) -> str:
    """Return a localcluster command as it can be typed in the checkout."""
    ready = (REPOSITORY / ".venv" / "bin" / "python").exists()
    return " ".join(["bin/localcluster" if ready else f"{sys.executable} -m localcluster", *arguments])
