"""The webhook's authority and certificate, kept in a Secret of the operator's namespace so that they outlive a restart.

Pods are told the authority when they are made; one that changed with each start of the operator would shut them out.
"""

from __future__ import annotations

import base64
import datetime
import logging
from collections.abc import Sequence
from typing import Any, Final

from lorafinetune.kube.client import SECRETS, Cluster
from lorafinetune.kube.errors import AlreadyExists, Conflict
from lorafinetune.receiver.certificate import (
    Authority,
    ServerCertificate,
    make_authority,
    make_server_certificate,
    renewal_due,
)

Object = dict[str, Any]

CA: Final = "ca.crt"
CA_KEY: Final = "ca.key"
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
TRIES: Final = 5

_log = logging.getLogger(__name__)


async def load_or_make(
    cluster: Cluster, *, namespace: str, name: str, hosts: Sequence[str], now: datetime.datetime
) -> tuple[Authority, ServerCertificate]:
    """Return what the Secret holds; what is missing, due for renewal or of another host is made and written.

    Two operators that start at once agree: the second reads what the first wrote. Raises ClusterError.
    """
    for _ in range(TRIES):
        secret = await cluster.get(SECRETS, name, namespace)
        data = {key: base64.b64decode(value) for key, value in ((secret or {}).get("data") or {}).items()}
        authority = Authority(data[CA], data[CA_KEY]) if CA in data and CA_KEY in data else make_authority(now)
        if (
            CERTIFICATE in data
            and KEY in data
            and not renewal_due(data[CERTIFICATE], hosts, authority.certificate, now)
        ):
            return authority, ServerCertificate(data[CERTIFICATE], data[KEY])
        server = make_server_certificate(authority, hosts, now)
        try:
            await _write(cluster, secret, namespace=namespace, name=name, authority=authority, server=server)
        except (AlreadyExists, Conflict):
            continue
        _log.info("made the webhook's certificate for %s", ", ".join(hosts))
        return authority, server
    raise Conflict(f"Secret {namespace}/{name} is written by others all the time")


async def _write(
    cluster: Cluster, old: Object | None, *, namespace: str, name: str, authority: Authority, server: ServerCertificate
) -> None:
    content = {CA: authority.certificate, CA_KEY: authority.key, CERTIFICATE: server.certificate, KEY: server.key}
    body: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
    }
    if old is None:
        await cluster.create(SECRETS, body, namespace)
        return
    operations: list[Object] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": old["metadata"]["resourceVersion"]},
        {"op": "add", "path": "/data", "value": body["data"]},
    ]
    if await cluster.json_patch(SECRETS, name, namespace, operations) is None:
        raise Conflict(f"Secret {namespace}/{name} was deleted")
