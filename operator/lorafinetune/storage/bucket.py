"""One bucket below one prefix, through boto3: small verbs, bounded pages, errors that say what to do.

Two clients: content is put and got with retries, conditional writes without, since a retry after a lost answer would
meet its own effect and report a conflict that is none.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lorafinetune.contract.layout import Location
from lorafinetune.storage import answers, errors
from lorafinetune.storage.answers import Asked
from lorafinetune.storage.pieces import Pieces

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef, ObjectIdentifierTypeDef

_Result = TypeVar("_Result")

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 30.0
ATTEMPTS: Final = 5
DELETE_BATCH: Final = 1000
"""S3's own limit on keys in one bulk delete."""
PAGE: Final = 1000
BODY_ATTEMPTS: Final = 3
_HASTY: Final = {"connect_timeout": 2.0, "attempts": 2}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys of one identity. Their text never appears in a representation."""

    key_id: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.key_id[:4]}...)"


class Object(NamedTuple):
    """What was got: the bytes and the ETag that a conditional write may name."""

    body: bytes
    etag: str


class Listed(NamedTuple):
    """One line of a listing; the key is relative to the bucket's prefix."""

    key: str
    size: int


class Bucket:
    """The objects below ``location.key`` of one bucket. Keys are relative to it. Safe to use from several threads."""

    def __init__(
        self,
        location: Location,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        credentials: Credentials | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        attempts: int = ATTEMPTS,
        connections: int = 16,
        session: boto3.session.Session | None = None,
    ) -> None:
        """*session* is one that was made with the same credentials and region; a new one takes a tenth of a second."""
        self.location = location
        session = session or boto3.session.Session(
            # With keys of its own it must not matter which profile AWS_PROFILE names, nor whether there is one.
            botocore_session=botocore.session.Session({"profile": (None, None, None, None)}) if credentials else None,
            aws_access_key_id=credentials.key_id if credentials else None,
            aws_secret_access_key=credentials.secret_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            region_name=region or "us-east-1",
        )

        self._made_with: dict[str, Any] = {"endpoint": endpoint, "connections": connections, "session": session}

        def client(tries: int, *, signed_bodies: bool) -> S3Client:
            return session.client(
                "s3",
                endpoint_url=endpoint,
                config=Config(
                    connect_timeout=connect_timeout,
                    read_timeout=read_timeout,
                    retries={"total_max_attempts": tries, "mode": "standard"},
                    max_pool_connections=connections,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={
                        **({"addressing_style": "path"} if endpoint else {}),
                        **({} if signed_bodies else {"payload_signing_enabled": False}),
                    },
                ),
            )

        self._attempts = attempts
        # Content carries a signed SHA-256 of its own: to hash it once more for the signature would double the work.
        self._client = client(attempts, signed_bodies=False)
        self._once = client(1, signed_bodies=True)
        self._endpoint = str(self._client.meta.endpoint_url)  # the environment may name it, too
        self._elsewhere = endpoint is not None
        self._fences = True

    def below(self, prefix: str) -> Bucket:
        """Return the same bucket, below *prefix* (which ends with a slash) of this one."""
        return self.at(Location(self.location.bucket, self.location.key + prefix))

    def at(self, location: Location) -> Bucket:
        """Return another place at the same endpoint, with the same credentials and connections."""
        other = object.__new__(Bucket)
        other.__dict__.update(self.__dict__)
        other.location = location
        return other

    def hasty(self, read_timeout: float) -> Bucket:
        """Return the same place through a client that gives up early: for work that has a deadline."""
        other = Bucket(self.location, **{**self._made_with, **_HASTY, "read_timeout": read_timeout})
        other._fences = self._fences
        return other

    def unfenced(self) -> Bucket:
        """Return the same place for a store that does not know conditional writes.

        Conditions are then looked up before the write, and whoever writes in between is overwritten: this is what
        ``storage.unsafeNoFencing`` stands for.
        """
        other = self.at(self.location)
        other._fences = False
        return other

    def uri(self, key: str = "") -> str:
        """Return ``s3://bucket/prefix/key``."""
        return str(Location(self.location.bucket, self.location.key + key))

    def get(self, key: str, *, limit: int | None = None, checked: bool = False) -> Object:
        """Return the object's bytes and ETag; one larger than *limit* bytes raises NotVerified before it is read.

        *checked* asks for the checksum too, where the store keeps one: bytes of another version are read again.
        """

        def read(answer: GetObjectOutputTypeDef) -> Object:
            size = answer["ContentLength"]
            if limit is not None and size > limit:
                answer["Body"].close()
                raise errors.NotVerified(f"{self.uri(key)} has {size} bytes, more than the {limit} allowed")
            return Object(answer["Body"].read(), answer["ETag"])

        return self._read(key, read, **({"ChecksumMode": "ENABLED"} if checked else {}))

    def get_range(self, key: str, first: int, end: int) -> bytes:
        """Return the object's bytes from *first* up to, not including, *end*; raises NotVerified where it has fewer."""
        if first >= end:
            return b""
        body = self._read(key, lambda answer: answer["Body"].read(), Range=f"bytes={first}-{end - 1}")
        if len(body) != end - first:
            raise errors.NotVerified(f"{self.uri(key)} has no bytes {first} to {end}: it was changed, or cut short")
        return body

    def download(self, key: str, path: Path) -> None:
        """Write the object's bytes to *path* in pieces of 1 MiB."""

        def read(answer: GetObjectOutputTypeDef) -> None:
            with path.open("wb") as file:
                for piece in answer["Body"].iter_chunks(1024 * 1024):
                    file.write(piece)

        self._read(key, read)

    def size(self, key: str) -> int:
        """Return the object's size in bytes, without reading it."""
        return self._about(key)["ContentLength"]

    def put(
        self,
        key: str,
        body: bytes | memoryview,
        *,
        sha256: str | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Put content, with retries; the server checks the bytes against their SHA-256.

        *sha256* is that of the body, where it is known. *watch* is told the size of each piece before it is sent; what
        it raises ends the put, and the object is not there.
        """
        digest = bytes.fromhex(sha256) if sha256 is not None else hashlib.sha256(body).digest()
        content: Any = Pieces(body, watch)
        try:
            self._client.put_object(
                Bucket=self.location.bucket,
                Key=self.location.key + key,
                Body=content,
                ChecksumSHA256=base64.b64encode(digest).decode(),
            )
        except (BotoCoreError, ClientError) as error:
            self._raise(error, key)

    def create(self, key: str, body: bytes) -> str:
        """Put *body* only where nothing is; return its ETag. Raises Conflict, or AnswerLost if nobody can tell."""
        return self._conditional(key, body, {"IfNoneMatch": "*"})

    def replace(self, key: str, body: bytes, etag: str) -> str:
        """Put *body* only over the object of that *etag*; return the new ETag. Raises Conflict or AnswerLost."""
        return self._conditional(key, body, {"IfMatch": etag})

    def walk(self, prefix: str = "", *, limit: int | None = None) -> Iterator[Listed]:
        """Yield the objects below *prefix* in key order, page by page, at most *limit*."""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket,
                Prefix=self.location.key + prefix,
                PaginationConfig={"PageSize": PAGE} if limit is None else {"PageSize": PAGE, "MaxItems": limit},
            )
            for page in pages:
                for one in page.get("Contents", []):
                    yield Listed(one["Key"][len(self.location.key) :], one["Size"])
        except (BotoCoreError, ClientError) as error:
            self._raise(error, prefix)

    def delete(self, keys: Iterable[str]) -> int:
        """Delete *keys* in batches and return how many; deleting what is not there succeeds."""
        count, batch = 0, list[str]()
        for key in keys:
            batch.append(key)
            if len(batch) == DELETE_BATCH:
                count += self._delete(batch)
                batch = []
        return count + (self._delete(batch) if batch else 0)

    def erase(self, key: str) -> None:
        """Delete one object, with all its versions where the bucket keeps them."""
        if self.is_versioned():
            self.delete_versions(key.__eq__)  # a plain delete would only add a marker
        else:
            self.delete([key])

    def is_versioned(self) -> bool:
        """Whether the bucket keeps old versions; a store that does not know the question keeps none."""
        try:
            answer = self._client.get_bucket_versioning(Bucket=self.location.bucket)
        except ClientError as error:
            if answers.status_of(error) in (400, 404, 405, 501):
                return False
            if answers.status_of(error) == 403:
                return False  # the smallest policy does not include it; docs say what versioning then keeps
            self._raise(error, "")
        except BotoCoreError as error:
            self._raise(error, "")
        return answer.get("Status") in ("Enabled", "Suspended")

    def delete_versions(self, garbage: Callable[[str], bool]) -> int:
        """Delete every version and delete marker of the keys that *garbage* names; return how many."""
        count = 0
        try:
            pages = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self.location.bucket, Prefix=self.location.key, PaginationConfig={"PageSize": PAGE}
            )
            for page in pages:
                found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                old = [(one["Key"], one["VersionId"]) for one in found if garbage(one["Key"][len(self.location.key) :])]
                if old:
                    objects: list[ObjectIdentifierTypeDef] = [
                        {"Key": key, "VersionId": version} for key, version in old
                    ]
                    count += self._delete_objects(objects)
        except (BotoCoreError, ClientError) as error:
            self._raise(error, "")
        return count

    def _read(self, key: str, read: Callable[[GetObjectOutputTypeDef], _Result], **request: str) -> _Result:
        """Ask for an object and let *read* take its body; a body that breaks off is asked for again."""
        for again in reversed(range(min(BODY_ATTEMPTS, self._attempts))):
            try:
                answer = self._client.get_object(Bucket=self.location.bucket, Key=self.location.key + key, **request)  # type: ignore[arg-type]
            except (BotoCoreError, ClientError) as error:  # botocore has tried it again already
                self._raise(error, key)
            try:
                return read(answer)
            except (BotoCoreError, ClientError) as error:
                if not (again and isinstance(error, answers.BROKEN_BODY)):
                    self._raise(error, key)
        raise AssertionError("the last attempt returns or raises")

    def _delete(self, keys: list[str]) -> int:
        return self._delete_objects([{"Key": self.location.key + key} for key in keys])

    def _delete_objects(self, keys: list[ObjectIdentifierTypeDef]) -> int:
        try:
            answer = self._client.delete_objects(Bucket=self.location.bucket, Delete={"Objects": keys, "Quiet": True})
        except (BotoCoreError, ClientError) as error:
            self._raise(error, keys[0]["Key"][len(self.location.key) :])
        if left := answer.get("Errors"):
            first = left[0]
            kind = errors.AccessDenied if first.get("Code") in answers.DENIED else errors.Unreachable
            raise kind(
                f"{len(left)} of {len(keys)} objects cannot be deleted, first {first.get('Key')}: {first.get('Code')}"
            )
        return len(keys)

    def _about(self, key: str) -> HeadObjectOutputTypeDef:
        try:
            return self._client.head_object(Bucket=self.location.bucket, Key=self.location.key + key)
        except (BotoCoreError, ClientError) as error:
            self._raise(error, key)

    def _look_up(self, key: str, etag: str | None) -> None:
        """Raise Conflict where *key* is not of *etag*, or is there although it should not be (None)."""
        found = None
        with contextlib.suppress(errors.ObjectMissing):
            found = self._about(key)["ETag"]
        if found != etag:
            raise errors.Conflict(f"{self.uri(key)} is not what the write expected")

    def _conditional(self, key: str, body: bytes, condition: dict[str, Any]) -> str:
        if not self._fences:
            self._look_up(key, condition.get("IfMatch"))
            condition = {}
        try:
            return self._once.put_object(
                Bucket=self.location.bucket,
                Key=self.location.key + key,
                Body=body,
                ChecksumSHA256=base64.b64encode(hashlib.sha256(body).digest()).decode(),
                **condition,
            )["ETag"]
        except (BotoCoreError, ClientError) as error:
            raise answers.meaning_of_write(error, self._asked(key), over="IfMatch" in condition) from error

    def _asked(self, key: str) -> Asked:
        return Asked(self.uri(key), self.location.bucket, self._endpoint, self._elsewhere)

    def _raise(self, error: BotoCoreError | ClientError, key: str) -> NoReturn:
        raise answers.meaning(error, self._asked(key)) from error
