"""A pod's trainer without training: it claims the head, commits checkpoints and the artifact, and tells of them.

What it does to bucket and webhook is what a trainer does: the contract's head, the storage's own swap, manifests with
files of a few bytes, a token that the API server has made for that pod, HTTPS with the authority that the run config
names. Its pod's status is written by the bench.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp

from localcluster.api import STRATEGIC, Api
from lorafinetune.contract import canonical, head, layout
from lorafinetune.contract.event import AUDIENCE, EVENTS_PATH, Event, EventType, Phase
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry
from lorafinetune.contract.manifest import File, Manifest
from lorafinetune.contract.runconfig import ENV_RUN_CONFIG, RunConfig
from lorafinetune.kube.seen import LABEL_ATTEMPT
from lorafinetune.storage import head as heads
from lorafinetune.storage import inventory
from lorafinetune.storage.bucket import Bucket

Object = dict[str, Any]

KEEP = 2


class HollowTrainer:
    """Plays the trainer of one pod. Use it as an async context manager: from its start to its end."""

    def __init__(self, api: Api, pod: Object, bucket: Bucket) -> None:
        """*bucket* is that of all runs; the run's own prefix is found from the pod's run config."""
        [container] = pod["spec"]["containers"]
        environment = {one["name"]: one.get("value", "") for one in container["env"]}
        self.config = RunConfig.model_validate_json(environment[ENV_RUN_CONFIG])
        self._api = api
        self._pod = pod
        self._container = container["name"]
        self._attempt = int(pod["metadata"]["labels"][LABEL_ATTEMPT])
        run = self.config.run
        where = layout.run_prefix(self.config.storage.uri, run.namespace, run.name, run.uid)
        self._bucket = bucket.at(where)
        self._sequence = itertools.count(1)
        self._session: aiohttp.ClientSession | None = None
        self._started = _now()

    async def __aenter__(self) -> HollowTrainer:
        metadata = self._pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        account = self._pod["spec"].get("serviceAccountName", "default")
        asked = await self._api.create(
            f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"audiences": [AUDIENCE], "boundObjectRef": bound},
            },
        )
        assert self.config.webhook is not None
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {asked['status']['token']}"},
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=self.config.webhook.ca)),
        )
        await self._write("Running", {"running": {"startedAt": _stamp(self._started)}}, ready=True)
        await asyncio.to_thread(heads.change, self._bucket, self._claimed)
        await self.tell(EventType.STARTED, 0, phase=Phase.TRAINING, total_steps=self.config.training.steps)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def tell(self, kind: EventType, step: int, **about: Any) -> None:
        """Send one event. Raises AssertionError if the operator does not take it."""
        run = self.config.run
        event = Event(
            type=kind, run_uid=run.uid, attempt=self._attempt, sequence=next(self._sequence), step=step, **about
        )
        assert self._session is not None
        assert self.config.webhook is not None
        body = event.model_dump_json(by_alias=True, exclude_none=True)
        url = f"{self.config.webhook.url.rstrip('/')}{EVENTS_PATH}"
        async with self._session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status < 300, f"the operator answered {answer.status}: {await answer.text()}"

    async def checkpoint(self, step: int) -> None:
        """Commit a checkpoint of *step*, and tell of progress and of it."""
        await self.tell(EventType.PROGRESS, step, phase=Phase.TRAINING, loss=0.1, seconds_per_step=1.0)
        folder = layout.checkpoint(self._attempt, step)
        sha256 = await asyncio.to_thread(self._put, "checkpoint", folder, step, {"state.safetensors": b"state"})
        entry = CheckpointEntry(attempt=self._attempt, step=step, manifest_sha256=sha256, size=5)
        await asyncio.to_thread(
            heads.change, self._bucket, lambda found: head.commit(self._mine(found), entry, keep=KEEP)
        )
        await self.tell(EventType.CHECKPOINT, step, phase=Phase.TRAINING, checkpoint=entry)

    async def finish(self, step: int) -> None:
        """Publish the artifact, tell of it, and end as a trainer that is done."""
        sha256 = await asyncio.to_thread(
            self._put, "artifact", layout.artifact(self._attempt), step, {layout.LORA: b"lora"}
        )
        entry = ArtifactEntry(attempt=self._attempt, step=step, manifest_sha256=sha256, size=4)
        await asyncio.to_thread(heads.change, self._bucket, lambda found: head.publish(self._mine(found), entry))
        await self.tell(EventType.FINISHED, step, phase=Phase.EXPORTING, artifact=entry)
        times = {"startedAt": _stamp(self._started), "finishedAt": _stamp(_now())}
        await self._write("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed", **times}})

    def _claimed(self, found: head.Head | None) -> head.Head:
        run = self.config.run
        return head.claim(found, run_uid=run.uid, attempt=self._attempt, pod_uid=self._pod["metadata"]["uid"])

    def _mine(self, found: head.Head | None) -> head.Head:
        return head.check_fence(found, attempt=self._attempt, pod_uid=self._pod["metadata"]["uid"])

    def _put(self, kind: str, folder: str, step: int, files: Mapping[str, bytes]) -> str:
        for name, body in files.items():
            self._bucket.put(folder + name, body)
        named = [File(name=name, size=len(body), sha256=canonical.sha256(body)) for name, body in files.items()]
        run = self.config.run
        about = {"kind": kind, "run_uid": run.uid, "attempt": self._attempt, "step": step, "updates": step}
        return inventory.put_folder(self._bucket, folder, Manifest.model_validate(about | {"files": named}))

    async def _write(self, phase: str, state: Object, *, ready: bool = False) -> None:
        metadata = self._pod["metadata"]
        about = {"name": self._container, "image": "x", "imageID": "", "ready": ready, "restartCount": 0}
        body = {"status": {"phase": phase, "containerStatuses": [about | {"state": state}]}}
        await self._api.patch(
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status", body, STRATEGIC
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
