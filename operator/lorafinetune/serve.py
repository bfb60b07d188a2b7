"""The operator as one process: stores, leader, loop, receiver, front door; all begin and end together."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import time
from typing import Any

import kopf

from lorafinetune.contract.event import AUDIENCE
from lorafinetune.engine.notices import Marks
from lorafinetune.jobs import Jobs
from lorafinetune.kube import election, handlers, seen
from lorafinetune.kube.client import NODES, PODS, POOLS, RUNS, Cluster
from lorafinetune.kube.errors import ClusterError
from lorafinetune.kube.events import EventRecorder
from lorafinetune.kube.pods import Trainer
from lorafinetune.kube.reflector import Reflector, trim
from lorafinetune.kube.secrets import Secrets
from lorafinetune.kube.slim import slim, slim_pod
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import NamespacedStore, Stores
from lorafinetune.loop import Loop
from lorafinetune.places import filed
from lorafinetune.poolboard import PoolBoard
from lorafinetune.probes import Probes
from lorafinetune.receiver.authenticate import Identity
from lorafinetune.receiver.certificate import Authority, ServerCertificate, host_of
from lorafinetune.receiver.judge import Judge
from lorafinetune.receiver.server import Receiver
from lorafinetune.settings import Settings
from lorafinetune.telemetry import Metrics
from lorafinetune.webhooktls import load_or_make
from lorafinetune.witness import Witness

LEASE = "lorafinetune"
RENEW_SECONDS = 24 * 3600.0
LIST_SECONDS = 300.0

_log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM, SIGINT, or a loss that only a new process can mend (the Lease, a worker)."""
    metrics = Metrics()
    cluster = await Cluster.connect(on_request=metrics.requested)
    operator = Operator(settings, cluster, metrics)
    probes = Probes(metrics.registry, live={"watches": operator.silent}, ready={"operator": operator.unready})
    host, port = settings.metrics_listen
    await probes.start(host=host, port=port)
    try:
        await operator.run()
    finally:
        await probes.close()
        await cluster.close()


class Operator:
    """Everything that runs, and the order in which it begins."""

    def __init__(self, settings: Settings, cluster: Cluster, metrics: Metrics) -> None:
        self._settings = settings
        self._cluster = cluster
        self._metrics = metrics
        self._namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
        self._runs = Store(lambda run: [run["metadata"]["uid"]], slim)
        self._pods = pods = {one: Store(filed, slim_pod) for one in self._namespaces}
        self._stores = Stores(self._runs, NamespacedStore(pods), Store(), Store())
        self._loop: Loop | None = None
        self._receiving = False
        on_seen = metrics.watched
        self._reflectors = [
            *(
                Reflector(
                    cluster,
                    PODS,
                    store,
                    namespace=one,
                    label_selector=seen.LABEL_RUN_UID,
                    wake=self._pod,
                    on_seen=on_seen,
                )
                for one, store in pods.items()
            ),
            Reflector(cluster, NODES, self._stores.nodes, wake=self._node, trim=_trim_node, on_seen=on_seen),
            Reflector(cluster, POOLS, self._stores.pools, wake=self._pool, on_seen=on_seen),
        ]

    # News goes to the loop once there is one; what came before, the loop finds in the stores.

    def _pod(self, change: Change) -> None:
        if self._loop is not None:
            self._loop.pod_changed(change)

    def _node(self, change: Change) -> None:
        if self._loop is not None:
            self._loop.node_changed(change)

    def _pool(self, change: Change) -> None:
        if self._loop is not None:
            self._loop.pool_changed(change)

    def _run(self, change: Change) -> None:
        if self._loop is not None:
            self._loop.run_changed(change)

    def silent(self) -> str | None:
        """Return why this process should be started anew, or None: the answer to a liveness probe."""
        silent = [one.name for one in self._reflectors if one.synced.is_set() and one.lagging()]
        return f"no news of {', '.join(silent)} for minutes" if silent else None

    def _resumed_at(self) -> float:
        """Return since when pods and nodes have been watched without a gap, Unix seconds."""
        return time.time() - (
            time.monotonic() - max(one.resumed_at for one in self._reflectors if one.store is not self._stores.pools)
        )

    def unready(self) -> str | None:
        """Return what is still missing, or None: the answer to a readiness probe."""
        missing = [one.name for one in self._reflectors if not one.synced.is_set()]
        if missing:
            return f"listing {', '.join(missing)}"
        return None if self._receiving else "waiting for the Lease"

    async def run(self) -> None:
        """Fill the stores, wait for the Lease, then work."""
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(one.run()) for one in self._reflectors]
                await asyncio.gather(*(one.synced.wait() for one in self._reflectors))
                await election.lead(
                    self._cluster,
                    namespace=self._settings.own_namespace,
                    name=LEASE,
                    identity=self._settings.own_name,
                    on_started=self._lead,
                    on_lost=_leave,
                    on_leading=self._metrics.leading,
                )
                for task in running:
                    task.cancel()
        finally:
            self._receiving = False

    async def _lead(self) -> None:
        settings = self._settings
        authority, certificate = await self._certificate()
        trainer = Trainer(
            image=settings.trainer_image,
            pull_policy=settings.trainer_pull_policy,
            webhook_url=settings.webhook_url,
            webhook_ca=authority.certificate.decode(),
        )
        recorder = EventRecorder(self._cluster, settings.own_name, count=self._metrics.event)
        witness = Witness(self._cluster, recorder, self._metrics, namespace=settings.own_namespace, clock=time.time)
        await witness.recall()
        loop = Loop(
            self._cluster,
            self._stores,
            trainer,
            witness=witness,
            metrics=self._metrics,
            make_jobs=lambda wake: Jobs(
                read_secret=Secrets(self._cluster).read,
                wake=wake,
                clock=time.time,
                ambient=settings.ambient_storage,
                on_deleted=self._metrics.deleted,
            ),
            clock=time.time,
            collect_timeout=settings.collect_timeout,
            currency=settings.currency,
            resumed_at=self._resumed_at,
            marks=Marks.with_more(settings.notice_taints, settings.notice_conditions),
        )
        await self._list_runs()
        self._loop = loop
        loop.begin()
        judge = Judge(review=self._review, current=loop.current, deliver=loop.deliver, ready=lambda: self._receiving)
        receiver = Receiver(judge, count=self._metrics.webhook)
        host, port = settings.webhook_listen
        await receiver.start(certificate, host=host, port=port)
        self._receiving = True
        try:
            async with asyncio.TaskGroup() as tasks:
                board = PoolBoard(self._cluster, self._stores.pools, known=loop.pools_known, clock=time.time)
                work = (recorder.run(), loop.run(), board.run(), self._renew(receiver), self._list_again())
                helpers = [tasks.create_task(one) for one in work]
                # kopf ends when the process is told to; it is the last to begin, for it cancels what began after it.
                await self._front_door()
                for task in helpers:
                    task.cancel()
        finally:
            self._receiving = False
            await receiver.close()
            await recorder.flush()

    async def _front_door(self) -> None:
        namespaces = self._settings.namespaces
        await kopf.operator(
            registry=handlers.registry(self._runs, self._run),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
        )

    async def _certificate(self) -> tuple[Authority, ServerCertificate]:
        return await load_or_make(
            self._cluster,
            namespace=self._settings.own_namespace,
            name=self._settings.webhook_tls_secret,
            hosts=[host_of(self._settings.webhook_url)],
            now=datetime.datetime.now(datetime.UTC),
        )

    async def _renew(self, receiver: Receiver) -> None:
        """Look once a day whether the webhook's certificate is due; pods trust its authority, which stays."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                _, certificate = await self._certificate()
                await receiver.use(certificate)
            except ClusterError as error:
                _log.warning("the webhook's certificate could not be looked at: %s", error)

    async def _list_again(self) -> None:
        """Replace the runs now and then: kopf never tells of one that was torn away while its watch was broken."""
        while True:
            await asyncio.sleep(LIST_SECONDS)
            for namespace in self._namespaces:
                try:
                    runs, version = await self._cluster.list_all(RUNS, namespace)
                except ClusterError as error:
                    _log.warning("runs could not be listed: %s", error)
                    continue
                here = [trim(run) for run in runs]
                others = [run for run in self._runs if namespace not in (None, run["metadata"]["namespace"])]
                for change in self._runs.replace([*here, *others], version):
                    self._run(change)

    async def _list_runs(self) -> None:
        """Know every run before anybody asks about one: a trainer that is told that its run is gone would stop."""
        for namespace in self._namespaces:
            runs, _ = await self._cluster.list_all(RUNS, namespace)
            for run in runs:
                self._runs.take("ADDED", trim(run))
        # A standby's watch may have been broken while the old leader made a pod: what it made must not look vanished.
        for namespace, store in self._pods.items():
            pods, version = await self._cluster.list_all(PODS, namespace, label_selector=seen.LABEL_RUN_UID)
            store.replace([trim(pod) for pod in pods], version)

    async def _review(self, token: str) -> Identity | None:
        review = await self._cluster.review_token(token, AUDIENCE)
        if review is None:
            return None
        return Identity(review.namespace, review.service_account, review.pod_name, review.pod_uid)


def _trim_node(node: dict[str, Any]) -> dict[str, Any]:
    """Keep what is read of a node: images and addresses of thousands of nodes would be most of our memory."""
    status = node.get("status", {})
    node["status"] = {
        "conditions": status.get("conditions", []),
        "nodeInfo": {"bootID": status.get("nodeInfo", {}).get("bootID", "")},
    }
    return trim(node)


def _leave(why: str) -> None:
    """End the process at once: another may lead by now, and nothing that we could still do is safe."""
    logging.getLogger(__name__).critical("the Lease is lost (%s): ending", why)
    logging.shutdown()
    os._exit(3)
