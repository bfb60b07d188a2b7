"""What the run keeps of its base model, on a real S3 server: put in the background, restored only if it is the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import single_file
from lorafinetune.contract import layout
from lorafinetune.contract.head import Fenced
from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import fetching, kept
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Files, Folder
from lorafinetune_trainer.base.keeper import Keeper
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.base.traffic import Traffic
from tests.integration.trainer.process import in_preloaded
from tests.integration.trainer.s3 import Access

LIMIT = 30.0
SIZE = 8 * 1024 * 1024


@pytest.fixture
def bucket(s3: Access, name: str) -> Bucket:
    return s3.bucket(f"s3://loras/{name}/")


@pytest.fixture
def files(tmp_path: Path) -> Folder:
    """Three files, of which the largest takes a while to be put."""
    for name, size in {"scheduler/a.json": 10, "unet/config.json": 20, "unet/weights": SIZE}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(index % 251 for index in range(1000)) * (size // 1000) or b"x" * size)
    return Folder(tmp_path, ("scheduler/a.json", "unet/config.json", "unet/weights"), TRAINED)


class Given:
    """A keeper, and what it is told by the rest of the attempt."""

    def __init__(self, bucket: Bucket, files: Files, before_put: Callable[[], None] = lambda: None) -> None:
        self.bucket, self.files, self.digest = bucket, files, files.digest(TRAINED)
        self.before_put = before_put
        self.notes: list[str] = []
        self.looks = 0
        self.busy, self.noticed = threading.Event(), threading.Event()
        self.keeper = self._keeper(TRAINED)

    def _keeper(self, parts: frozenset[str]) -> Keeper:
        return Keeper(
            self.bucket,
            self.files,
            parts,
            self.digest,
            run_uid="uid",
            before_put=self.before_put,
            busy=self.is_busy,
            noticed=self.noticed,
            note=self.notes.append,
        )

    def keep(self, parts: frozenset[str]) -> None:
        """Have these parts put, and wait until they are."""
        self._keeper(parts).start()
        self.wait_for(lambda: bool(self.notes))

    def is_busy(self) -> bool:
        self.looks += 1
        return self.busy.is_set()

    @property
    def there(self) -> dict[str, int]:
        return {one.key: one.size for one in self.bucket.walk(layout.BASE)}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.01)

    def restore(self, folder: Path) -> Files | None:
        return kept.restore(self.bucket, self.digest, TRAINED, folder, traffic=Traffic(), note=self.notes.append)


def test_what_is_kept_is_restored_byte_by_byte(bucket: Bucket, files: Folder, tmp_path: Path) -> None:
    given = Given(bucket, files)
    assert given.restore(tmp_path / "none") is None
    given.keeper.start()
    given.wait_for(lambda: bool(given.notes))
    assert given.notes[0].startswith(f"base model: {sum((files.folder / one).stat().st_size for one in files.names)} ")
    assert max(given.there.values()) <= layout.MAX_PART_BYTES
    found = given.restore(tmp_path / "again")
    assert found == Folder(tmp_path / "again", files.names, TRAINED)
    for name in files.names:
        assert (tmp_path / "again" / name).read_bytes() == (files.folder / name).read_bytes()
    assert Folder(tmp_path / "again", files.names, TRAINED).digest(TRAINED) == given.digest
    second = Given(bucket, files)  # nothing is left to do
    second.keeper.start()
    second.keeper.stop()
    assert second.notes == []
    key = max(given.there, key=lambda one: given.there[one])
    bucket.put(key, bytes(given.there[key]))
    assert given.restore(tmp_path / "damaged") is None
    assert "damaged, and is fetched anew" in given.notes[-1]
    bucket.delete([key])
    assert given.restore(tmp_path / "missing") is None
    assert "does not exist" in given.notes[-1]


def test_another_model_under_its_name_is_not_taken(bucket: Bucket, files: Folder, tmp_path: Path) -> None:
    given = Given(bucket, files)
    given.keeper.start()
    given.wait_for(lambda: bool(given.notes))
    bucket.put(kept.manifest_key("0" * 64), bucket.get(kept.manifest_key(given.digest)).body)
    given.digest = "0" * 64
    assert given.restore(tmp_path / "other") is None
    assert "another model" in given.notes[-1]


@pytest.mark.parametrize("name_of", ["../outside", "/outside", "unet/../../outside"])
def test_names_that_lead_elsewhere_are_refused(name_of: str, bucket: Bucket, files: Folder, tmp_path: Path) -> None:
    given = Given(bucket, files)
    body = kept.describe(files, TRAINED, "uid").model_dump_json(by_alias=True).replace("unet/weights", name_of)
    bucket.put(kept.manifest_key(given.digest), body.encode())
    assert given.restore(tmp_path / "deep/er") is None
    assert "not the name of a file" in "".join(given.notes) or "damaged" in given.notes[-1]
    assert not list(tmp_path.rglob("outside"))


def test_it_waits_for_checkpoints(bucket: Bucket, files: Folder) -> None:
    asked: list[int] = []
    given = Given(bucket, files, lambda: asked.append(1))
    given.busy.set()
    given.keeper.start()
    given.wait_for(lambda: given.looks > 2)
    assert given.there == {}
    assert asked == []  # nor does it try
    given.busy.clear()
    given.wait_for(lambda: bool(given.notes))
    assert kept.manifest_key(given.digest) in given.there


def test_it_gives_up_what_it_sends_when_a_checkpoint_comes(bucket: Bucket, files: Folder) -> None:
    """The checkpoint is under way from the first piece of the largest object on, until that has been given up."""
    given = Given(bucket, files)
    puts: list[str] = []
    put = bucket.put

    def watched(key: str, body: bytes, **members: object) -> None:
        puts.append(key)
        watch = members.pop("watch")
        assert callable(watch)
        sent = 0

        def count(size: int) -> None:
            nonlocal sent
            watch(size)
            sent += size
            if len(body) == SIZE - SIZE % 1000 and puts.count(key) == 1 and sent > 2 * 1024 * 1024:
                given.busy.set()

        try:
            put(key, body, watch=count, **members)  # type: ignore[arg-type]
        finally:
            given.busy.clear()

    bucket.put = watched  # type: ignore[method-assign]
    given.keeper.start()
    given.wait_for(lambda: bool(given.notes))
    assert kept.manifest_key(given.digest) in given.there
    largest = max(given.there, key=lambda one: given.there[one])
    assert puts.count(largest) == 2
    assert len(puts) == 5


@pytest.mark.parametrize("how", ["SIGTERM", "the artifact is next", "fenced"])
def test_it_stops_at_once_and_a_later_attempt_goes_on(how: str, bucket: Bucket, files: Folder) -> None:
    asked: list[int] = []

    def before_put() -> None:
        asked.append(1)
        if len(asked) == 2:
            if how == "fenced":
                raise Fenced("a newer attempt")
            (given.noticed if how == "SIGTERM" else given.keeper._stopped).set()

    given = Given(bucket, files, before_put)
    given.keeper.start()
    given.keeper._thread.join(LIMIT)
    assert not given.keeper._thread.is_alive()
    assert len(given.there) == 1
    assert bool(given.notes) is (how == "fenced")
    later = Given(bucket, files)
    later.keeper.start()
    later.wait_for(lambda: bool(later.notes))
    assert set(given.there) >= {kept.manifest_key(given.digest)}
    total = sum((files.folder / one).stat().st_size for one in files.names)
    assert later.notes[0].startswith(f"base model: {total - 10} bytes")


def test_a_sparse_file_gets_the_parts_that_it_lacks(bucket: Bucket, tiny_model: Path, tmp_path: Path) -> None:
    """On a resume the UNet is fetched, and the VAE only once there are pictures to decode: no hole may pass for it."""
    path = in_preloaded(single_file.write, tiny_model, tmp_path / "one" / "tiny.safetensors")
    for one in path.parent.rglob("*"):
        if one.is_file():
            bucket.put(str(one.relative_to(path.parent)), one.read_bytes())
    source = BaseModelSource(source=f"{bucket.uri()}{path.name}")
    means = Means(bucket.at, tmp_path / "scratch")

    def fetch(*parts: str) -> Files:
        return fetching.fetch(source, frozenset(parts), means, half=False)

    here = fetching.fetch(BaseModelSource(source=str(path)), TRAINED | ENCODERS, means, half=False)
    assert fetch(*TRAINED).digest(TRAINED) == here.digest(TRAINED)
    before = means.traffic.fetched
    assert fetch("vae").digest({"vae"}) == here.digest({"vae"})
    assert fetch(*TRAINED).digest(TRAINED) == here.digest(TRAINED)
    assert before < means.traffic.fetched < before + path.stat().st_size / 2
    assert (tmp_path / "scratch/baseModel.source" / path.name).stat().st_size == path.stat().st_size


def test_each_part_can_be_restored_alone(bucket: Bucket, tiny_model: Path, tmp_path: Path) -> None:
    """Also of one file, where parts are neighbours: what was not asked for stays a hole."""
    path = in_preloaded(single_file.write, tiny_model, tmp_path / "one" / "tiny.safetensors")
    means = Means(bucket.at, tmp_path / "scratch")
    for source in (tiny_model, path):
        here = fetching.fetch(BaseModelSource(source=str(source)), TRAINED | ENCODERS, means, half=False)
        trained = TRAINED | (ENCODERS - {"vae"})
        given = Given(bucket, here)
        given.digest = here.digest(trained)
        kept_parts = trained | {"vae"}
        given.keep(kept_parts)
        for number, parts in enumerate((trained, frozenset({"vae"}))):
            traffic = Traffic()
            folder = tmp_path / f"{source.name}-{number}"
            found = kept.restore(bucket, given.digest, parts, folder, traffic=traffic, note=given.notes.append)
            assert found is not None, given.notes
            assert found.parts == parts
            assert found.digest(parts) == here.digest(parts)
            assert traffic.fetched < sum(one.stat().st_size for one in source.parent.rglob("*") if one.is_file())
            with pytest.raises(AssertionError, match="has not been fetched"):
                found.digest(kept_parts)
