"""One container of a pod: its process, its restarts, its entry in the pod's status."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcluster.api import ApiError, unreachable
from localcluster.images import Image, read_images
from localcluster.node import podstatus
from localcluster.node.context import NodeContext
from localcluster.node.environment import ConfigError, container_environment, expand, quantity
from localcluster.node.logs import tail
from localcluster.node.paths import PathMap
from localcluster.node.volumes import Volumes
from localcluster.process import Exit, KeptProcess, StartError

Json = dict[str, Any]
log = logging.getLogger("localcluster.node.container")
RETRY_FIRST, RETRY_LAST = 0.5, 10.0
CRASH_FIRST, CRASH_LAST, CRASH_FORGET = 10.0, 300.0, 600.0
MESSAGE_BYTES, MESSAGE_LOG_LINES, MESSAGE_LOG_BYTES = 4096, 80, 2048
DEFAULT_MESSAGE_PATH = "/dev/termination-log"
IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._\-/:]*(@sha256:[0-9a-f]{64})?")
START_FAILED = 128


class Container:
    """Runs one container as often as its restart policy says. `status` is always current; `changed` is called."""

    def __init__(
        self, context: NodeContext, pod: Json, spec: Json, *, directory: Path, logs: Path, volumes: Volumes,
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.context = context
        self.pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        self.directory = directory
        self.logs = logs
        self.volumes = volumes
        self.changed = changed
        self.status = podstatus.container_status(spec)
        self.process: KeptProcess | None = None
        self.out_of_memory = False
        self._image_id = ""
        self.stop = asyncio.Event()

    @property
    def memory_limit(self) -> int | None:
        """The container's memory limit in bytes."""
        limit = self.spec.get("resources", {}).get("limits", {}).get("memory")
        return int(quantity(limit)) if limit else None  # the API server has checked that it is one

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.exit is None

    def log_path(self, run: int | None = None) -> Path:
        """Return the log file of a run (the current one by default)."""
        return self.logs / f"{self.status['restartCount'] if run is None else run}.log"

    def _event(self, kind: str, reason: str, message: str) -> None:
        self.context.recorder.event(self.pod, kind, reason, message, self.name)

    def _set(self, state: Json, **more: Any) -> None:
        """Change the status; what did not change is not reported."""
        new = self.status | {"state": state} | more
        if new != self.status:
            self.status = new
            self.changed()

    async def run(self, restart_policy: str) -> None:
        """Run until the restart policy asks for no further run; returns when the container has ended for good."""
        delay = CRASH_FIRST
        while not self.stop.is_set():
            began = time.monotonic()
            code = await self.run_once()
            if (
                code is None
                or self.stop.is_set()
                or restart_policy == "Never"
                or (restart_policy == "OnFailure" and code == 0)
            ):
                return
            if time.monotonic() - began > CRASH_FORGET:
                delay = CRASH_FIRST
            ended = self.status["state"]
            message = (
                f"back-off {delay:.0f}s restarting failed container={self.name} pod={self.pod['metadata']['name']}"
            )
            self._event("Warning", "BackOff", f"Back-off restarting failed container {self.name}")
            self._set(podstatus.waiting("CrashLoopBackOff", message), lastState=ended)
            if await self._pause(delay):
                return
            delay = min(delay * 2, CRASH_LAST)
            self.status["restartCount"] += 1

    async def _pause(self, seconds: float) -> bool:
        """Wait; True as soon as the container is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        return self.stop.is_set()

    async def run_once(self) -> int | None:
        """Get ready, start the process and wait for its end; returns the exit code, None where it was never started."""
        prepared = await self._prepare()
        if prepared is None:
            return None
        command, environment = prepared
        log = self.log_path()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.out_of_memory = False
        try:
            self.process = await KeptProcess.start(command, env=environment, cwd=self._workdir(), cri_log=log)
        except StartError as error:
            self._event("Warning", "Failed", f"Error: {error}")
            now = podstatus.timestamp(time.time())
            self._set({"terminated": {
                "exitCode": START_FAILED, "reason": "StartError", "message": str(error)[:MESSAGE_BYTES],
                "startedAt": now, "finishedAt": now,
            }}, ready=False, started=False)  # fmt: skip
            return START_FAILED
        if self.stop.is_set():
            self.process.signal(signal.SIGTERM)  # the order came while the process was being made
        identity = f"process://{self.process.pid}"
        started = podstatus.timestamp(self.process.started)
        self._event("Normal", "Started", f"Container started: {self.name}")
        self._set(
            {"running": {"startedAt": started}}, ready=True, started=True, containerID=identity,
            imageID=self._image_id,
        )  # fmt: skip
        ended = await self.process.wait()
        terminated = self._terminated(ended, started, identity)
        self._set({"terminated": terminated}, ready=False, started=False)
        return int(terminated["exitCode"])

    def _terminated(self, ended: Exit, started: str, identity: str) -> Json:
        number = ended.signal if ended.code is None and ended.signal is not None else None
        if ended.code is None and number is None:
            number = 9  # its keeper was killed, and it with it
        code = ended.code if ended.code is not None else 128 + (number or 0)
        reason = "OOMKilled" if self.out_of_memory else "Completed" if code == 0 else "Error"
        state: Json = {
            "exitCode": code, "reason": reason, "startedAt": started,
            "finishedAt": podstatus.timestamp(ended.time), "containerID": identity,
        }  # fmt: skip
        if number is not None:
            state["signal"] = number
        message = self._message(failed=code != 0)
        return state | ({"message": message} if message else {})

    def _message(self, *, failed: bool) -> str:
        """Return the termination message: the file's content, or the end of the log where the policy says so."""
        path = self.directory / "termination-log"
        with contextlib.suppress(OSError):
            with path.open("rb") as file:
                content = file.read(MESSAGE_BYTES)
            if content:
                return content.decode(errors="replace")
        if failed and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return tail(self.log_path(), MESSAGE_LOG_LINES, MESSAGE_LOG_BYTES)
        return ""

    async def _prepare(self) -> tuple[list[str], dict[str, str]] | None:
        """Return command line and environment; waits, with the reason in the status, while they cannot be had."""
        delay = RETRY_FIRST
        while not self.stop.is_set():
            try:
                return await self._command(self._image())
            except ConfigError as error:
                self._event("Warning", "Failed", f"Error: {error}")
                self._set(podstatus.waiting("CreateContainerConfigError", str(error)))
            except _PullError as error:
                self._event("Warning", "Failed", str(error))
                self._set(podstatus.waiting(error.reason, str(error)))
                if error.reason == "ErrImagePull" and not await self._pause(delay):
                    message = f'Back-off pulling image "{self.spec.get("image")}"'
                    self._event("Normal", "BackOff", message)
                    self._set(podstatus.waiting("ImagePullBackOff", f"{message}: ErrImagePull: {error}"))
            except ApiError as error:
                # Forbidden for a moment: the node authorizer learns of a binding after us.
                log.info("container %s: %s", self.name, error)
                if delay > RETRY_FIRST:
                    self._set(podstatus.waiting("CreateContainerConfigError", str(error)))
            except Exception as error:
                if not unreachable(error):
                    raise
            await self._pause(delay)
            delay = min(delay * 2, RETRY_LAST)
        return None

    def _image(self) -> Image:
        name = self.spec.get("image", "")
        images = read_images(Path(self.context.config.images))
        if name in images:
            digest = hashlib.sha256(repr(images[name]).encode()).hexdigest()
            self._image_id = f"{name.rpartition(':')[0] or name}@sha256:{digest}"
            return images[name]
        if not IMAGE_NAME.fullmatch(name):
            message = (
                f'Failed to apply default image tag "{name}": couldn\'t parse image name: invalid reference format'
            )
            raise _PullError("InvalidImageName", message)
        message = (
            f'failed to pull and unpack image "{name}": not found (localcluster knows: {", ".join(sorted(images))})'
        )
        raise _PullError("ErrImagePull", message)

    async def _command(self, image: Image) -> tuple[list[str], dict[str, str]]:
        meta, config = self.pod["metadata"], self.context.config

        async def fetch(kind: str, name: str) -> Json | None:
            return await self.context.fetch(meta["namespace"], kind, name)

        values = await container_environment(self.pod, self.spec, image.environment, fetch, config.capacity)
        command = [expand(word, values) for word in self.spec.get("command") or []]
        args = [expand(word, values) for word in self.spec.get("args") or []]
        line = image.command_line(command, args)
        if not line:
            raise ConfigError(f'no command specified: image "{self.spec.get("image")}" has none either')
        for folder in ("home", "tmp"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        message = self.directory / "termination-log"
        message.write_bytes(b"")
        mounts = self.volumes.mounts(self.spec)
        mounts[self.spec.get("terminationMessagePath") or DEFAULT_MESSAGE_PATH] = message
        self._paths = PathMap(mounts, config.routes)
        own = {
            "PATH": os.defpath,
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "HOSTNAME": meta["name"],
            "KUBERNETES_SERVICE_HOST": config.api_host,
            "KUBERNETES_SERVICE_PORT": str(config.api_port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(config.api_port),
        }
        if "LD_LIBRARY_PATH" in os.environ:
            own["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        told = {name: self._paths.translate(value) for name, value in values.items()}
        return [self._paths.translate(word) for word in line], own | told

    def _workdir(self) -> Path:
        """Return the working directory: the mount that `workingDir` names, else the container's own folder."""
        asked = self.spec.get("workingDir")
        real = Path(self._paths.translate(asked)) if asked else None
        return real if real is not None and real.is_relative_to(self.volumes.directory) else self.directory

    def terminate(self) -> None:
        """SIGTERM to the main process; no further run starts."""
        self.stop.set()
        if self.process:
            self.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything of the container."""
        self.stop.set()
        if self.process:
            self.process.kill()


class _PullError(Exception):
    """An image cannot be had; `reason` is the container's waiting reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
