"""Work on buckets that takes time: it runs in threads beside the loop, one job of a kind per run, and wakes the run.

What worked last is remembered while the run lives: a namespace that is being deleted takes its Secrets first.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from lorafinetune.api.finetune import LoRAFineTuneSpec, OnDelete
from lorafinetune.api.status import ArtifactStatus
from lorafinetune.contract import layout, runconfig
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.engine.decision import Job, StartJob
from lorafinetune.engine.deleting import NOT_OURS
from lorafinetune.engine.observation import ArtifactChecked, RunSeen, StorageChecked, StorageSeen, Tidied
from lorafinetune.storage import collect, errors, inventory, probe
from lorafinetune.storage import head as heads
from lorafinetune.storage.bucket import Bucket, Credentials
from lorafinetune.storage.clients import Clients
from lorafinetune.storage.lately import Lately
from lorafinetune.storage.rebuild import rebuild

Object = dict[str, Any]
ReadSecret = Callable[[str, str], Awaitable[Object | None]]

THREADS: Final = 8
WRITERS: Final = frozenset({Job.CHECK, Job.MARK, Job.REBUILD, Job.PRUNE})
"""Jobs that put objects below the run's prefix."""
TIDYING: Final = {
    Job.MARK: "marked",
    Job.REBUILD: "rebuilt",
    Job.PRUNE: "pruned",
    Job.BURY: "buried",
    Job.COLLECT: "collected",
}
"""Jobs whose answer is a Tidied, and the member of StorageSeen that keeps it."""
SECRET_LABEL: Final = "lorafinetune.io/storage"

_log = logging.getLogger(__name__)


class CredentialsProblem(errors.StorageError):
    """The Secret cannot be used; *reason* says why in one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Desk:
    """What is known of one run's bucket, and what is being asked."""

    seen: StorageSeen = field(default_factory=StorageSeen)
    running: dict[Job, asyncio.Task[None]] = field(default_factory=dict)
    worked: Credentials | None = None


class Jobs:
    """Starts jobs, keeps their answers, wakes the run that waits for one."""

    def __init__(
        self,
        *,
        read_secret: ReadSecret,
        wake: Callable[[str], None],
        clock: Callable[[], float],
        ambient: tuple[str, ...] = (),
        on_deleted: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._read_secret = read_secret
        self._wake = wake
        self._clock = clock
        self._ambient = ambient
        self._on_deleted = on_deleted
        self._desks: dict[str, _Desk] = {}
        self._fencing: set[tuple[str | None, str]] = set()
        """(endpoint, bucket) that were seen to fence: asked once per process."""
        self._clients = Clients()
        self._lately = Lately()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bucket")

    def seen(self, uid: str) -> StorageSeen:
        """Return what is known of the run's bucket."""
        desk = self._desks.get(uid)
        return desk.seen if desk is not None else StorageSeen()

    def forget(self, uid: str) -> None:
        """Drop a run that is gone."""
        self._desks.pop(uid, None)

    def drop_artifact(self, uid: str) -> None:
        """Forget a verdict on an artifact: the next attempt's is another."""
        if (desk := self._desks.get(uid)) is not None:
            desk.seen = replace(desk.seen, artifact=None)

    def start(self, job: Job, run: RunSeen, spec: LoRAFineTuneSpec, attempt: int, steps: int | None = None) -> None:
        """Start *job* unless it is running for that run; *steps* as in :class:`StartJob`."""
        desk = self._desks.setdefault(run.uid, _Desk())
        if job in (Job.BURY, Job.COLLECT) and not desk.running.keys().isdisjoint(WRITERS):
            return  # what they write must not appear behind a collection; that job's end wakes the run
        if job not in desk.running:
            desk.running[job] = asyncio.create_task(self._run(StartJob(job, steps), desk, run, spec, attempt))

    async def secret_problem(self, namespace: str, field: str, name: str) -> CredentialsProblem | None:
        """Say why the Secret that *field* names may not be mounted, if it may not. Raises ClusterError."""
        return _problem(await self._read_secret(namespace, name), field, name, namespace)

    async def close(self) -> None:
        """Cancel what is running; threads end with their bounded requests."""
        for desk in self._desks.values():
            for task in desk.running.values():
                task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, asked: StartJob, desk: _Desk, run: RunSeen, spec: LoRAFineTuneSpec, attempt: int) -> None:
        try:
            update = await self._answer(asked, desk, run, spec, attempt)
            desk.seen = replace(desk.seen, **update)
        finally:
            desk.running.pop(asked.job, None)
            self._wake(run.uid)

    async def _answer(self, asked: StartJob, desk: _Desk, run: RunSeen, spec: LoRAFineTuneSpec, attempt: int) -> Object:
        job = asked.job
        try:
            credentials = await self._credentials(desk, run, spec)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, self._work, asked, run, spec, attempt, credentials)
        except (errors.StorageError, Fenced, HeadLost) as error:
            reason = getattr(error, "reason", type(error).__name__)
            _log.warning(
                "%s of %s/%s: %s", job, run.namespace, run.name, error, extra={"uid": run.uid, "reason": reason}
            )
            return self._failed(asked, reason, str(error), spec)
        except Exception as error:
            _log.exception("%s of %s/%s failed", job, run.namespace, run.name, extra={"uid": run.uid})
            return self._failed(asked, "StorageError", f"{type(error).__name__}: {error}", spec)
        desk.worked = credentials
        return answer

    def _failed(self, asked: StartJob, reason: str, message: str, spec: LoRAFineTuneSpec) -> Object:
        now = self._clock()
        match asked.job:
            case Job.CHECK:
                return {"checked": StorageChecked(False, reason, message, now)}
            case Job.READ:
                return {"read": now}
            case Job.VERIFY:
                final = reason in (errors.NotVerified.reason, "ArtifactMissing")
                wanted = asked.steps or spec.training.steps or 0
                return {"artifact": ArtifactChecked(False, final, reason, message, now, wanted)}
            case _:
                return {TIDYING[asked.job]: Tidied(False, reason, message, now)}

    async def _credentials(self, desk: _Desk, run: RunSeen, spec: LoRAFineTuneSpec) -> Credentials | None:
        name = spec.storage.credentials_secret
        if name is None:
            places = [spec.storage.uri, *(source for _, source, _ in _image_folders(spec))]
            if all(_within(uri, self._ambient) for uri in places):
                return None
            raise CredentialsProblem(
                "CredentialsMissing",
                f"storage.credentialsSecret is not set, and no ambient identity is allowed for {spec.storage.uri}: "
                "name a Secret, or add the prefix to the operator's ambient storage",
            )
        secret = await self._read_secret(run.namespace, name)
        if secret is None and desk.worked is not None and run.deleting_since is not None:
            return desk.worked
        if (problem := _problem(secret, "storage.credentialsSecret", name, run.namespace)) is not None:
            raise problem
        assert secret is not None
        return _keys(secret, name)

    def _work(
        self, asked: StartJob, run: RunSeen, spec: LoRAFineTuneSpec, attempt: int, credentials: Credentials | None
    ) -> Object:
        prefix = layout.run_prefix(spec.storage.uri, run.namespace, run.name, run.uid)
        bucket = self._open(spec, prefix, credentials)
        keep = spec.storage.on_delete is OnDelete.KEEP_ARTIFACT
        now = self._clock()
        match asked.job:
            case Job.CHECK:
                return {"checked": self._check(bucket, spec, credentials)}
            case Job.MARK:
                heads.mark_owner(bucket, _owner(run))
                return {"marked": Tidied(True, "Ready", f"{bucket.uri(layout.OWNER)} is there", now)}
            case Job.READ:
                head = heads.read(bucket).head
                planned = head.plan.steps if head is not None and head.plan is not None else None
                newest = head.newest if head is not None else None
                published = head.artifact if head is not None else None
                return {"newest": newest, "planned_steps": planned, "published": published, "read": now}
            case Job.VERIFY:
                return {"artifact": _verify(bucket, spec, now, asked.steps)}
            case Job.REBUILD:
                heads.mark_owner(bucket, _owner(run))  # somebody may have deleted it with the head
                return {"rebuilt": _rebuild(bucket, run, spec, attempt, now)}
            case Job.PRUNE:
                if heads.read(bucket).head is None:
                    _rebuild(bucket, run, spec, attempt, now)
                return {"pruned": self._tidied(collect.prune(bucket, run_uid=run.uid), now)}
            case Job.BURY:
                done = collect.bury(bucket, run_uid=run.uid, attempt=attempt, keep_artifact=keep)
                return {"buried": self._tidied(done, now)}
            case Job.COLLECT:
                done = collect.collect(bucket, run_uid=run.uid, attempt=attempt, keep_artifact=keep)
                return {"collected": self._tidied(done, now)}

    def _open(self, spec: LoRAFineTuneSpec, location: layout.Location, credentials: Credentials | None) -> Bucket:
        storage = spec.storage
        bucket = self._clients.open(location, endpoint=storage.endpoint, region=storage.region, credentials=credentials)
        return bucket.unfenced() if storage.unsafe_no_fencing else bucket

    def _tidied(self, done: collect.Collected, now: float) -> Tidied:
        self._on_deleted(done.deleted)
        if done.foreign:
            return Tidied(True, NOT_OURS, "the prefix holds objects without this run's owner mark: not touched", now)
        kept = f", {done.kept} of the artifact kept" if done.kept else ""
        return Tidied(True, "Collected", f"{done.deleted} object{'' if done.deleted == 1 else 's'} deleted{kept}", now)

    def _check(self, bucket: Bucket, spec: LoRAFineTuneSpec, credentials: Credentials | None) -> StorageChecked:
        store = (spec.storage.endpoint, bucket.location.bucket)
        asked = (spec.storage.endpoint, spec.storage.region, credentials)
        if spec.storage.unsafe_no_fencing or store in self._fencing:
            self._lately.ask(("written", *asked, spec.storage.uri), lambda: probe.probe_writing(bucket))
        else:
            probe.probe_fencing(bucket)
            self._fencing.add(store)
        message = f"{spec.storage.uri} can be written"
        if spec.storage.unsafe_no_fencing:
            message += (
                "; WITHOUT FENCING (storage.unsafeNoFencing): a partitioned attempt may overwrite a newer one's work"
            )
        for name, source, what in _image_folders(spec):
            images = self._lately.ask(
                ("images", *asked, source),
                partial(probe.count_images, self._open(spec, layout.folder(source), credentials), name),
            )
            message += f", {what} holds {images} image{'' if images == 1 else 's'}"
        return StorageChecked(True, "Ready", message, self._clock())


def _image_folders(spec: LoRAFineTuneSpec) -> list[tuple[str, str, str]]:
    """Return field, URI and a name for each place in the store that must hold images."""
    places = (
        ("dataset.source", spec.dataset.source, "the data set"),
        ("dataset.classSource", spec.dataset.class_source or "", "the class set"),
    )
    return [place for place in places if place[1].startswith("s3://")]


def _within(uri: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{uri.rstrip('/')}/".startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def _problem(secret: Object | None, field: str, name: str, namespace: str) -> CredentialsProblem | None:
    """Say why a Secret may not be used, if it may not."""
    if secret is None:
        message = f"{field} names Secret {name!r}, which namespace {namespace} lacks: create it"
        return CredentialsProblem("CredentialsMissing", message)
    if (secret["metadata"].get("labels") or {}).get(SECRET_LABEL) != "true":
        message = f'Secret {name!r} lacks the label {SECRET_LABEL}: "true", by which its owner lets runs use it: add it'
        return CredentialsProblem("CredentialsNotLabelled", message)
    return None


def _keys(secret: Object, name: str) -> Credentials:
    data = secret.get("data") or {}
    found = {key: base64.b64decode(value).decode().strip() for key, value in data.items()}
    missing = [key for key in (runconfig.KEY_ID, runconfig.SECRET_KEY) if not found.get(key)]
    if missing:
        raise CredentialsProblem(
            "CredentialsIncomplete", f"Secret {name!r} lacks the key {' and '.join(missing)}: add it"
        )
    return Credentials(found[runconfig.KEY_ID], found[runconfig.SECRET_KEY], found.get(runconfig.SESSION_TOKEN))


def _owner(run: RunSeen) -> heads.Owner:
    return heads.Owner(run_uid=run.uid, namespace=run.namespace, name=run.name)


def _rebuild(bucket: Bucket, run: RunSeen, spec: LoRAFineTuneSpec, attempt: int, now: float) -> Tidied:
    head = rebuild(bucket, run_uid=run.uid, attempt=attempt, keep=spec.checkpoint.keep)
    newest = f"step {head.newest.step}" if head.newest is not None else "no checkpoint"
    message = f"the head was lost and made anew from the manifests: {newest}; plan and conditioning are made anew"
    return Tidied(True, "HeadRebuilt", message, now)


def _verify(bucket: Bucket, spec: LoRAFineTuneSpec, now: float, wanted: int | None) -> ArtifactChecked:
    head = heads.read(bucket).head
    entry = head.artifact if head is not None else None
    planned = head.plan.steps if head is not None and head.plan is not None else None
    steps = wanted or spec.training.steps or planned or (entry.step if entry is not None else 0)
    enough = steps
    if wanted is not None and head is not None and head.newest is not None:
        enough = min(steps, head.newest.step)  # a newer checkpoint was known, and found to be damaged
    if entry is None or entry.step < enough:
        what = "the head names no artifact" if entry is None else f"the artifact is of step {entry.step} only"
        words = f"the trainer ended well, but {what}"
        may_be_raised = wanted is None and spec.training.steps is not None
        step, by = (entry.step, entry.attempt) if entry is not None and may_be_raised else (None, None)
        return ArtifactChecked(False, True, "ArtifactMissing", words, now, steps, step=step, attempt=by)
    manifest = inventory.verify(bucket, entry.folder, entry.manifest_sha256)
    lora = next((file for file in manifest.files if file.name == layout.LORA), None)
    if lora is None:
        return ArtifactChecked(False, True, "ArtifactMissing", f"the artifact holds no {layout.LORA}", now, steps)
    found = ArtifactStatus(uri=bucket.uri(entry.folder), file=lora.name, sha256=lora.sha256, size=lora.size)
    return ArtifactChecked(
        True, True, "Verified", "every byte is what the manifest names", now, steps, found, entry.step, entry.attempt
    )
