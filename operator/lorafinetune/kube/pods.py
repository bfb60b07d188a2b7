"""From an attempt to its pod: pure, and the same for the same attempt, so that a repeated create is a 409."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from lorafinetune.api import API_VERSION
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import canonical, runconfig
from lorafinetune.contract.event import AUDIENCE
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.edits import settings
from lorafinetune.engine.observation import RunSeen
from lorafinetune.engine.pending import asks_for
from lorafinetune.engine.silence import LONGEST_HOLD
from lorafinetune.kube import seen

Object = dict[str, Any]

GRACE_SECONDS: Final = 60
"""What we ask for between SIGTERM and SIGKILL. A cloud that takes its node sooner shortens it."""
EVICT_AFTER: Final = int(LONGEST_HOLD) + 30
"""Seconds on a node that turned unreachable before the platform ends the pod: not while its replacement is held, for a
node that came back then would end what trains on it. Who is lost is deleted by us, long before that."""
TOKEN_SECONDS: Final = 3600
USER: Final = 65532


@dataclass(frozen=True, slots=True)
class Trainer:
    """What the operator's configuration says about every trainer pod."""

    image: str
    webhook_url: str | None = None
    webhook_ca: str | None = None
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = field(default=())


def pod_name(run: RunSeen, attempt: int) -> str:
    """Return ``<run, cut to 45>-<5 of uid>-<attempt>``: unique to the run, not only to its name."""
    return f"{run.name[:45].rstrip('-.')}-{run.uid[:5]}-{attempt}"


def is_ours(pod: Object, run: RunSeen) -> bool:
    """Whether *pod* is an attempt of *run*: by its name, and by the owner that it was made with.

    Labels alone prove nothing: anybody may write them on any pod. A run that is deleted with ``--cascade=orphan`` loses
    its pods' owner references before its attempt has ended: then our finalizer tells which are its own.
    """
    metadata = pod["metadata"]
    owners = metadata.get("ownerReferences") or ()
    orphaned = run.deleting_since is not None and not owners and seen.POD_FINALIZER in metadata.get("finalizers", ())
    if not orphaned and not any(one.get("uid") == run.uid and one.get("controller") for one in owners):
        return False
    number = (metadata.get("labels") or {}).get(seen.LABEL_ATTEMPT, "")
    if not (number.isascii() and number.isdigit()) or int(number) < 1:
        return False
    return bool(metadata.get("namespace") == run.namespace and metadata["name"] == pod_name(run, int(number)))


def run_config(
    run: RunSeen,
    spec: LoRAFineTuneSpec,
    trainer: Trainer,
    *,
    lifetime_seconds: float | None = None,
    publish: bool = False,
) -> runconfig.RunConfig:
    """Return all that the attempt is told. It holds no secret: credentials are files that it names."""
    webhook = None
    if trainer.webhook_url is not None:
        token = f"{runconfig.WEBHOOK_TOKEN}/token"
        webhook = runconfig.Webhook(url=trainer.webhook_url, ca=trainer.webhook_ca, token=token)
    storage = spec.storage
    return runconfig.RunConfig(
        run=runconfig.Run(namespace=run.namespace, name=run.name, uid=run.uid),
        base_model=runconfig.BaseModelSource(
            source=spec.base_model.source,
            revision=spec.base_model.revision,
            vae=spec.base_model.vae,
            cache=spec.base_model.cache,
            hub_credentials=runconfig.HUB_CREDENTIALS if spec.base_model.credentials_secret else None,
        ),
        dataset=runconfig.Dataset.model_validate(spec.dataset.to_json()),
        training=spec.training,
        checkpoint=runconfig.Checkpointing.model_validate(
            spec.checkpoint.to_json() | {"lifetimeSeconds": lifetime_seconds}
        ),
        validation=runconfig.Validation.model_validate(spec.validation.to_json()) if spec.validation else None,
        metrics=runconfig.Metrics.model_validate(spec.metrics.to_json()),
        storage=runconfig.Storage(
            uri=storage.uri,
            endpoint=storage.endpoint,
            region=storage.region,
            credentials=runconfig.STORAGE_CREDENTIALS if storage.credentials_secret else None,
            unsafe_no_fencing=storage.unsafe_no_fencing,
        ),
        webhook=webhook,
        scratch=runconfig.SCRATCH,
        publish=publish,
    )


def build(run: RunSeen, spec: LoRAFineTuneSpec, create: CreatePod, trainer: Trainer) -> Object:
    """Return the pod of one attempt. ValueError if its run config is too large for an environment variable."""
    told = run_config(run, spec, trainer, lifetime_seconds=create.lifetime_seconds, publish=create.publish)
    config = canonical.encode(told.to_json()).decode()
    if len(config.encode()) > runconfig.MAX_RUN_CONFIG_BYTES:
        raise ValueError(
            f"the run config has more than {runconfig.MAX_RUN_CONFIG_BYTES} bytes: "
            "shorten dataset.instancePrompt, dataset.classPrompt or validation.prompts"
        )
    arguments = ["--attempt", str(create.attempt)]
    if create.resume_from is not None:
        arguments += ["--resume-from", create.resume_from]
    volumes, mounts = _volumes(spec, trainer)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(run, spec, create),
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "nodeSelector": dict(create.pool_spec.node_selector),
            **_away_from(create.avoid_nodes),
            "tolerations": _tolerations(create),
            "imagePullSecrets": [{"name": name} for name in trainer.pull_secrets],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": seen.CONTAINER,
                    "image": trainer.image,
                    "imagePullPolicy": trainer.pull_policy,
                    "args": arguments,
                    "env": [
                        {"name": runconfig.ENV_RUN_CONFIG, "value": config},
                        {"name": runconfig.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                        {"name": runconfig.ENV_TERMINATION_LOG, "value": runconfig.TERMINATION_LOG},
                        {"name": "HOME", "value": runconfig.SCRATCH},
                        {"name": "TMPDIR", "value": runconfig.SCRATCH},
                    ],
                    "resources": {"limits": {create.pool_spec.gpu.resource: str(create.pool_spec.gpu.count)}},
                    "terminationMessagePath": runconfig.TERMINATION_LOG,
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def _metadata(run: RunSeen, spec: LoRAFineTuneSpec, create: CreatePod) -> Object:
    annotations = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
        seen.ANNOTATION_CAPACITY: create.pool_spec.capacity_type.value,
        seen.ANNOTATION_PRICE: create.pool_spec.price_per_hour,
        seen.ANNOTATION_SETTINGS: settings(spec),
        seen.ANNOTATION_ASKS_FOR: asks_for(create.pool_spec),
    }
    queue = {seen.LABEL_QUEUE: spec.queue_name} if spec.queue_name is not None else {}
    if create.on_demand_price_per_hour is not None:
        annotations[seen.ANNOTATION_ON_DEMAND_PRICE] = create.on_demand_price_per_hour
    return {
        "name": pod_name(run, create.attempt),
        "namespace": run.namespace,
        "labels": {
            "app.kubernetes.io/name": "lorafinetune-trainer",
            "app.kubernetes.io/managed-by": "lorafinetune",
            seen.LABEL_RUN: run.name[:63].rstrip("-."),
            seen.LABEL_RUN_UID: run.uid,
            seen.LABEL_ATTEMPT: str(create.attempt),
            seen.LABEL_POOL: create.pool[:63].rstrip("-."),
            **queue,
        },
        "annotations": annotations,
        "finalizers": [seen.POD_FINALIZER],
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "LoRAFineTune",
                "name": run.name,
                "uid": run.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _away_from(nodes: tuple[str, ...]) -> Object:
    """Return the affinity that keeps a pod off *nodes*: by name, for a host name label may be another's."""
    if not nodes:
        return {}
    # A term takes one value of a name: that it is none of several is said once for each.
    unlike = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    terms = [{"matchFields": unlike}]
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    }


def _tolerations(create: CreatePod) -> list[Object]:
    own = [toleration.to_json() for toleration in create.pool_spec.tolerations]
    lost = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": EVICT_AFTER,
        }
        for state in ("not-ready", "unreachable")
    ]
    return own + lost


def _volumes(spec: LoRAFineTuneSpec, trainer: Trainer) -> tuple[list[Object], list[Object]]:
    volumes: list[Object] = [{"name": "scratch", "emptyDir": {}}]
    mounts: list[Object] = [{"name": "scratch", "mountPath": runconfig.SCRATCH}]

    def add(name: str, path: str, volume: Object) -> None:
        volumes.append({"name": name, **volume})
        mounts.append({"name": name, "mountPath": path, "readOnly": True})

    if spec.storage.credentials_secret:
        add("storage", runconfig.STORAGE_CREDENTIALS, {"secret": {"secretName": spec.storage.credentials_secret}})
    if spec.base_model.credentials_secret:
        add("hub", runconfig.HUB_CREDENTIALS, {"secret": {"secretName": spec.base_model.credentials_secret}})
    if trainer.webhook_url is not None:
        token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
        add("webhook", runconfig.WEBHOOK_TOKEN, {"projected": {"sources": [{"serviceAccountToken": token}]}})
    return volumes, mounts
