"""The real S3 server as the trainer's tests use it, and a look into its buckets."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localcluster import binaries
from localcluster.process import KEEPER
from localcluster.s3 import S3Access
from lorafinetune.contract.layout import folder
from lorafinetune.storage.bucket import Bucket, Credentials

BUCKET = "loras"


@dataclass(frozen=True)
class Access:
    """How to reach the server, and the folder that holds the keys as a mounted Secret would."""

    endpoint: str
    key_id: str
    secret_key: str
    credentials: Path
    data: Path
    """The server's own folder, with one for each bucket."""

    def bucket(self, uri: str) -> Bucket:
        """Open a place."""
        return Bucket(
            folder(uri), endpoint=self.endpoint, credentials=Credentials(self.key_id, self.secret_key), attempts=3
        )

    def versioned_bucket(self) -> str:
        """Make a bucket that keeps old versions, and return its URI."""
        name = f"versioned-{secrets.token_hex(4)}"
        self._client().create_bucket(Bucket=name)
        self._client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return f"s3://{name}/"

    def make_bucket(self) -> str:
        """Make a bucket, and return its name."""
        name = f"bucket-{secrets.token_hex(4)}"
        self._client().create_bucket(Bucket=name)
        return name

    @contextlib.contextmanager
    def without(self, bucket: str) -> Iterator[None]:
        """Take a bucket away, with all that it holds, and bring it back at the end of the block."""
        away = self.data.parent / f"{bucket}-away"
        (self.data / bucket).rename(away)
        yield
        away.rename(self.data / bucket)

    def versions(self, bucket: Bucket) -> list[str]:
        """List the keys of all versions and delete markers of a place."""
        where = bucket.location
        found = self._client().list_object_versions(Bucket=where.bucket, Prefix=where.key)
        return [one["Key"] for kind in ("Versions", "DeleteMarkers") for one in found.get(kind, [])]

    def _client(self) -> Any:
        return S3Access(self.endpoint, self.key_id, self.secret_key).client()

    def at(self, endpoint: str) -> Access:
        """The same keys at another endpoint: a proxy."""
        return replace(self, endpoint=endpoint)


@contextlib.contextmanager
def serve(directory: Path, *, nice: int = 0, sidecar: bool = False) -> Iterator[Access]:
    """Run versitygw with one bucket; it ends with the block, and with this process, however that ends.

    *nice* is what it yields to others of the processor. With a *sidecar*, as in a local cluster, ETags and checksums
    lie beside the objects, and not in their extended attributes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key_id, secret_key = f"LFT{secrets.token_hex(10).upper()}", secrets.token_urlsafe(30)
    credentials, data = directory / "credentials", directory / "data"
    credentials.mkdir()
    (data / BUCKET).mkdir(parents=True)
    for beside in ("versions", "sidecar"):
        (directory / beside).mkdir()
    (credentials / "AWS_ACCESS_KEY_ID").write_text(key_id)
    (credentials / "AWS_SECRET_ACCESS_KEY").write_text(f"{secret_key}\n")
    server = [
        *(["nice", "-n", str(nice)] if nice else []),
        str(binaries.find("versitygw")),
        "--port",
        f"127.0.0.1:{port}",
        "--quiet",
        "--keep-alive",
        "posix",
        "--versioning-dir",
        str(directory / "versions"),
        *(["--sidecar", str(directory / "sidecar")] if sidecar else []),
        str(data),
    ]
    status_read, status_write = os.pipe()
    with (directory / "log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), "--status-fd", str(status_write), "--", *server],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(status_write,),
            env={"PATH": os.defpath, "ROOT_ACCESS_KEY": key_id, "ROOT_SECRET_KEY": secret_key},
        )
    os.close(status_write)
    try:
        _wait_for(port)
        yield Access(f"http://127.0.0.1:{port}", key_id, secret_key, credentials, data)
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()  # the keeper kills the server when this closes
        keeper.wait(10)
        os.close(status_read)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "versitygw does not answer"
            time.sleep(0.05)
        else:
            return
