"""The S3 server of a cluster: versitygw over a folder, with random keys."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster.process import KeptProcess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class S3Access:
    """All that a client needs to use the server. The keys are new for each cluster and die with it."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = REGION

    @classmethod
    def new(cls, port: int) -> S3Access:
        """Make random keys; long ones, since versitygw's clients refuse short access keys."""
        return cls(f"http://127.0.0.1:{port}", f"LFT{secrets.token_hex(10).upper()}", secrets.token_urlsafe(30))

    def client(self) -> S3Client:
        """Return a boto3 client with path-style addresses."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=self.access_key, region_name=self.region,
            aws_secret_access_key=self.secret_key, config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def objects(self, uri: str) -> list[tuple[str, int]]:
        """List the objects below `s3://bucket/prefix`, as (key, bytes)."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [(one["Key"], one["Size"]) for page in pages for one in page.get("Contents", [])]

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the usual tools find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }


class S3Server:
    """The running server; buckets are folders below `directory`."""

    def __init__(self, program: Path, directory: Path, access: S3Access) -> None:
        self.program = program
        self.directory = directory
        self.access = access
        self.process: KeptProcess | None = None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises TimeoutError with the log's last lines."""
        folders = {name: self.directory / name for name in ("data", "sidecar", "versions")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        port = self.access.endpoint.rpartition(":")[2]
        log = self.directory / "versitygw.log"
        # Keys by environment: command lines are seen by every user of the machine.
        environment = {
            "PATH": os.defpath,
            "ROOT_ACCESS_KEY": self.access.access_key,
            "ROOT_SECRET_KEY": self.access.secret_key,
        }
        self.process = await KeptProcess.start(
            [self.program, "--port", f"127.0.0.1:{port}", "--region", self.access.region, "--quiet", "--keep-alive",
             "posix", "--sidecar", folders["sidecar"], "--versioning-dir", folders["versions"], folders["data"]],
            env=environment, log=log,
        )  # fmt: skip
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(port))
            except OSError as error:
                if self.process.exit or asyncio.get_running_loop().time() > deadline:
                    last = log.read_text(errors="replace")[-2000:]
                    raise TimeoutError(f"versitygw does not answer at {self.access.endpoint}:\n{last}") from error
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return

    async def stop(self) -> None:
        """End it at once; what it has acknowledged is on disk."""
        if self.process and not self.process.exit:
            self.process.kill()
            await self.process.wait(10)
