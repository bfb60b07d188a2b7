"""Thousands of idle runs, written by the bench as the operator would have: an operator that starts finds them.

Each is a copy of one that the operator has brought to where nothing happens to it: a third waits for a node, a third
is suspended, a third has finished. Run, status and (of those that wait) pod have names and UIDs of their own. What the
operator costs that holds them is then its own, and not that of making them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from localcluster.api import Api
from tests.bench.contenders import NAMESPACE, Run
from tests.bench.measures import WRITERS, Owner

Object = dict[str, Any]

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
APPLY = "application/apply-patch+yaml"
MANAGER = "lorafinetune"
"""The field manager by which the operator writes statuses: the copies are its own too."""


@dataclass(frozen=True, slots=True)
class Template:
    """A run to which nothing happens, and its pod where it has one, as the API server has them."""

    run: Object
    pod: Object | None

    def run_named(self, name: str) -> Object:
        """Return the run to create, held by the operator's finalizer already."""
        metadata = {"name": name, "namespace": NAMESPACE, "finalizers": self.run["metadata"]["finalizers"]}
        return {"apiVersion": self.run["apiVersion"], "kind": self.run["kind"], "metadata": metadata} | {
            "spec": self.run["spec"]
        }

    def pod_of(self, owner: Owner) -> Object:
        """Return the first attempt's pod of *owner*, to create. AssertionError where the template has none."""
        assert self.pod is not None
        kept = ("labels", "annotations", "finalizers", "ownerReferences")
        metadata = {key: self.pod["metadata"][key] for key in kept} | {"name": self.pod["metadata"]["name"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.pod["spec"]}
        return self._as(owner, pod)

    def status_of(self, owner: Owner, pod_uid: str | None) -> Object:
        """Return the status of *owner*, whose pod has that UID; None: it has none any more."""
        metadata = {"name": owner.name, "namespace": NAMESPACE}
        body = {"apiVersion": self.run["apiVersion"], "kind": self.run["kind"], "metadata": metadata} | {
            "status": self.run["status"]
        }
        changed = self._as(owner, body)
        if pod_uid is not None:
            for attempt in changed["status"]["attempts"]:
                attempt["podUID"] = pod_uid
        return changed

    def _as(self, owner: Owner, thing: Object) -> Object:
        """Return *thing* with the owner's name and UID in the place of the template's, in names and places too."""
        text = json.dumps(thing)
        mine = self.run["metadata"]
        for old, new in (
            (mine["uid"], owner.uid),
            (f"{mine['name']}-{mine['uid'][:8]}", f"{owner.name}-{owner.uid[:8]}"),
            (f"{mine['name']}-{mine['uid'][:5]}-", f"{owner.name}-{owner.uid[:5]}-"),
            (f'"{mine["name"]}"', f'"{owner.name}"'),
        ):
            text = text.replace(old, new)
        changed: Object = json.loads(text)
        return changed


async def template(api: Api, name: str, *, waits: bool) -> Template:
    """Return the run of that name as template; *waits*: its first attempt waits for a node. Raises ApiError."""
    run = await api.get(f"{Run.collection}/{name}")
    run |= {"apiVersion": "lorafinetune.io/v1alpha1", "kind": "LoRAFineTune"}
    pod = await api.get(f"{PODS}/{run['status']['attempts'][0]['pod']}") if waits else None
    return Template(run, pod)


async def populate(api: Api, models: Sequence[Template], names: Sequence[str]) -> list[Owner]:
    """Write a run of each name, by turns after each of the models; return them.

    For a time without operator, who would make pods of its own.
    """
    writers = asyncio.Semaphore(WRITERS)

    async def one(name: str, model: Template) -> Owner:
        async with writers:
            made = await api.create(Run.collection, model.run_named(name))
            owner = Owner(name, made["metadata"]["uid"])
            pod = await api.create(PODS, model.pod_of(owner)) if model.pod is not None else None
            await api.request(
                "PATCH",
                f"{Run.collection}/{name}/status",
                model.status_of(owner, pod["metadata"]["uid"] if pod is not None else None),
                content_type=APPLY,
                query={"fieldManager": MANAGER, "force": "true"},
            )
        return owner

    return list(await asyncio.gather(*(one(name, model) for name, model in zip(names, cycle(models), strict=False))))
