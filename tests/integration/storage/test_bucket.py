"""The verbs of the bucket, and its errors by what one can do about them, on the real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lorafinetune.contract.layout import folder
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket, Credentials
from tests.integration.trainer.faults import Fault, Kind, Proxy
from tests.integration.trainer.s3 import Access


def test_put_get_size_walk_delete(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a/one", b"1")
    bucket.put("a/two", memoryview(b"22"))
    bucket.put("b", b"")
    assert bucket.get("a/two").body == b"22"
    assert bucket.size("a/two") == 2
    assert [(one.key, one.size) for one in bucket.walk()] == [("a/one", 1), ("a/two", 2), ("b", 0)]
    assert [one.key for one in bucket.walk("a/")] == ["a/one", "a/two"]
    assert [one.key for one in bucket.below("a/").walk()] == ["one", "two"]
    assert [one.key for one in bucket.walk(limit=1)] == ["a/one"]
    bucket.download("a/two", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"22"
    assert bucket.delete(["a/one", "never-there"]) == 2
    assert [one.key for one in bucket.walk("a/")] == ["a/two"]


def test_keys_of_its_own_need_no_profile(s3: Access, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    made = s3.bucket(str(bucket.location))
    made.put("one", b"1")
    assert bucket.get("one").body == b"1"


def test_more_than_a_page(bucket: Bucket) -> None:
    names = [f"{number:05}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(name, b""), names))
    assert [one.key for one in bucket.walk()] == names
    assert bucket.delete(names) == 1005
    assert not list(bucket.walk())


def test_conditional_writes(bucket: Bucket) -> None:
    first = bucket.create("key", b"1")
    with pytest.raises(errors.Conflict):
        bucket.create("key", b"2")
    second = bucket.replace("key", b"2", first)
    assert bucket.get("key") == (b"2", second)
    with pytest.raises(errors.Conflict):
        bucket.replace("key", b"3", first)
    bucket.delete(["key"])
    with pytest.raises(errors.Conflict):
        bucket.replace("key", b"3", second)
    assert not list(bucket.walk())


def test_a_store_that_does_not_know_conditional_writes(through: Bucket, between: Proxy) -> None:
    between.faults = [Fault(Kind.UNKNOWN, times=1000, header=header) for header in ("if-match", "if-none-match")]
    with pytest.raises(errors.NotFencing, match="unsafeNoFencing"):
        through.create("key", b"1")
    assert not list(through.walk())
    test_conditional_writes(through.unfenced())
    assert through.unfenced().hasty(5).create("key", b"1")


def test_of_racing_writers_one_wins(bucket: Bucket) -> None:
    etag = bucket.create("key", b"start")

    def write(number: int) -> bool:
        try:
            bucket.replace("key", str(number).encode(), etag)
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(16))) == 1


def test_errors_say_what_to_do(s3: Access, bucket: Bucket) -> None:
    with pytest.raises(errors.ObjectMissing, match="none does not exist"):
        bucket.get("none")
    with pytest.raises(errors.ObjectMissing):
        bucket.size("none")
    elsewhere = s3.bucket("s3://no-such-bucket/")
    for act in (lambda: elsewhere.get("x"), lambda: elsewhere.put("x", b""), lambda: list(elsewhere.walk())):
        with pytest.raises(errors.BucketMissing, match="'no-such-bucket' does not exist at"):
            act()
    with pytest.raises(errors.BucketMissing):
        elsewhere.create("x", b"")
    for wrong in ({"secret_key": "not-the-secret"}, {"key_id": "not-the-key"}):
        stranger = replace(s3, **wrong).bucket("s3://loras/")
        for act in (partial(stranger.get, "x"), partial(stranger.put, "x", b""), partial(stranger.create, "x", b"")):
            with pytest.raises(errors.AccessDenied, match="check the Secret's keys"):
                act()
    bucket.put("large", b"12345")
    with pytest.raises(errors.NotVerified, match="5 bytes, more than the 4 allowed"):
        bucket.get("large", limit=4)


def test_without_credentials(s3: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    nobody = Bucket(folder("s3://loras/"), endpoint=s3.endpoint)
    with pytest.raises(errors.AccessDenied, match=r"set storage\.credentialsSecret"):
        nobody.get("x")


def test_nobody_there() -> None:
    lost = Bucket(folder("s3://loras/"), endpoint="http://127.0.0.1:9", credentials=Credentials("a", "b"), attempts=2)
    for act in (lambda: lost.get("x"), lambda: lost.put("x", b""), lambda: lost.create("x", b"")):
        with pytest.raises(errors.Unreachable) as caught:
            act()
        assert not isinstance(caught.value, errors.AnswerLost), "a request that never left has no lost answer"


@pytest.mark.parametrize("kind", [Kind.LOSE_ANSWER, Kind.ERROR_AFTER])
def test_a_lost_answer_to_a_conditional_write_is_not_tried_again(
    kind: Kind, through: Bucket, bucket: Bucket, between: Proxy
) -> None:
    between.faults = [Fault(kind, times=2)]
    with pytest.raises(errors.AnswerLost):
        through.create("key", b"1")
    assert [method for method, _ in between.seen] == ["PUT"]
    first = bucket.get("key")
    assert first.body == b"1"
    with pytest.raises(errors.AnswerLost):
        through.replace("key", b"2", first.etag)
    assert bucket.get("key").body == b"2"


@pytest.mark.parametrize("kind", [Kind.LOSE_ANSWER, Kind.ERROR_AFTER, Kind.REFUSE, Kind.DROP])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_content_is_tried_again(kind: Kind, method: str, through: Bucket, between: Proxy) -> None:
    between.faults = [Fault(kind, method, times=1)]
    through.put("key", b"1")
    assert through.get("key").body == b"1"
    assert between.happened == [kind]


def test_a_body_that_breaks_off_is_asked_for_again(through: Bucket, between: Proxy, tmp_path: Path) -> None:
    body = bytes(range(256)) * 8192
    through.put("key", body)
    between.faults = [Fault(Kind.BREAK_OFF, "GET", times=2)]
    assert through.get("key").body == body
    between.faults = [Fault(Kind.BREAK_OFF, "GET", times=2)]
    through.download("key", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == body
    for read in (lambda: through.get("key"), lambda: through.download("key", tmp_path / "file")):
        between.faults = [Fault(Kind.BREAK_OFF, "GET", times=100)]
        with pytest.raises(errors.Unreachable):
            read()


def test_one_that_has_a_deadline_gives_up_early(through: Bucket, between: Proxy) -> None:
    between.faults = [Fault(Kind.HANG, "GET", times=10)]
    with pytest.raises(errors.Unreachable):
        through.hasty(0.3).get("key")
    assert 1 <= len(between.seen) <= 2


def test_secrets_are_not_shown(bucket: Bucket) -> None:
    credentials = Credentials("AKIAEXAMPLE", "the-secret", "the-token")
    assert "the-secret" not in repr(credentials)
    assert "the-token" not in f"{credentials} {bucket!r}"
