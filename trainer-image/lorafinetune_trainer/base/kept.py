"""What a resume needs of a hub's model, as the run keeps it in its own prefix: blocks by their hash, and a manifest.

The manifest is named by the plan's digest of the base model, and what is restored must have that digest again: from
wherever it comes, it is the same model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.manifest import Sha256
from lorafinetune.contract.model import OpenModel
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import blocks, header
from lorafinetune_trainer.base.blocks import PARALLEL, Block
from lorafinetune_trainer.base.files import TRAINED, Files, Folder, Single
from lorafinetune_trainer.base.places import room
from lorafinetune_trainer.base.traffic import Traffic

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024


def _below(name: str) -> str:
    if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\x00" in name:
        raise ValueError("not the name of a file below the model's folder")
    return name


Name = Annotated[str, Field(max_length=512), AfterValidator(_below)]


class KeptBlock(OpenModel):
    """One object: a range of bytes of a file."""

    part: str | None = None
    """What it belongs to; absent = all parts need it."""
    name: Name
    first: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    sha256: Sha256


class KeptModel(OpenModel):
    """The manifest: which files there are, how long they are, and which objects hold their bytes."""

    version: Literal[1] = 1
    run_uid: str
    parts: list[str]
    single: Name | None = None
    """The file that holds all parts, where there is one; it has holes where other parts would lie."""
    sizes: dict[Name, Annotated[int, Field(ge=0)]]
    """Bytes of each file."""
    blocks: Annotated[list[KeptBlock], Field(max_length=100_000)]

    def only(self, parts: Collection[str]) -> KeptModel:
        """Return the manifest of some of the parts."""
        wanted = [one for one in self.blocks if one.part is None or one.part in parts]
        names = {one.name for one in wanted}
        sizes = {name: size for name, size in self.sizes.items() if name in names}
        return self.model_copy(update={"parts": sorted(parts), "blocks": wanted, "sizes": sizes})


def describe(files: Files, parts: Collection[str], run_uid: str) -> KeptModel:
    """Return the manifest of *parts* of *files*; what has not been hashed yet is hashed."""
    wanted: dict[Block, str | None] = {one: part for part in sorted(parts) for one in files.blocks({part})}
    if isinstance(files, Single):
        wanted |= dict.fromkeys(blocks.cut(files.name, 0, files.header.start))
        wanted |= {Block(name, 0, (files.folder / name).stat().st_size): None for name in files.configs}
    files.hashes.update(blocks.hashes(files.folder, [one for one in wanted if one not in files.hashes]))
    return KeptModel(
        run_uid=run_uid,
        parts=sorted(parts),
        single=files.name if isinstance(files, Single) else None,
        sizes={name: (files.folder / name).stat().st_size for name in sorted({one.name for one in wanted})},
        blocks=[KeptBlock(part=part, **one._asdict(), sha256=files.hashes[one]) for one, part in wanted.items()],
    )


def manifest_key(digest: str) -> str:
    """Return the key of the manifest of the base model of that *digest*."""
    return f"{layout.BASE}{digest}.json"


def block_key(sha256: str) -> str:
    """Return the key of a block."""
    return f"{layout.BASE}{sha256}"


def restore(
    bucket: Bucket,
    digest: str,
    parts: frozenset[str],
    folder: Path,
    *,
    traffic: Traffic,
    note: Callable[[str], None],
) -> Files | None:
    """Return *parts* of the base model of *digest* as the run keeps them, or None where it does not, or not whole.

    The digest covers what a resume needs; other parts (a VAE) are as the manifest says.
    Raises Failure (DiskFull), and Unreachable or AccessDenied where the bucket does not answer.
    """
    began = time.monotonic()
    try:
        body = bucket.get(manifest_key(digest), limit=MAX_MANIFEST_BYTES).body
        kept = KeptModel.model_validate_json(body)
        if not set(parts) <= set(kept.parts):
            return None
        kept = kept.only(parts)
        _fetch(bucket, kept, folder, traffic)
        found = _files(kept, folder)
        if parts >= TRAINED and found.digest(parts) != digest:
            raise errors.NotVerified("what was put together is another model")
    except errors.ObjectMissing:
        return None
    except (errors.NotVerified, ValidationError, ValueError) as error:
        note(f"the base model in the run's bucket is damaged, and is fetched anew: {str(error).splitlines()[0]}")
        return None
    note(f"base model: {traffic.fetched} bytes from the run's bucket in {time.monotonic() - began:.1f} s")
    return found


def _fetch(bucket: Bucket, kept: KeptModel, folder: Path, traffic: Traffic) -> None:
    def fetch(one: KeptBlock) -> None:
        block = Block(one.name, one.first, one.end)
        if one.name not in kept.sizes or not 0 <= block.first <= block.end <= kept.sizes[one.name]:
            raise errors.NotVerified(f"{one.name} has no bytes {one.first} to {one.end}")
        body = bucket.get(block_key(one.sha256), limit=block.size).body
        traffic.add(len(body))
        if len(body) != block.size or canonical.sha256(body) != one.sha256:
            raise errors.NotVerified(f"{bucket.uri(block_key(one.sha256))} is not what its name says")
        blocks.write(folder, block, body)

    folder.mkdir(parents=True, exist_ok=True)
    size = sum(one.end - one.first for one in kept.blocks)
    with (
        room(folder, size, "the base model in the run's bucket"),
        ThreadPoolExecutor(PARALLEL, thread_name_prefix="restore") as pool,
    ):
        for name, bytes_ in kept.sizes.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(bytes_)
        waiting = [pool.submit(fetch, one) for one in kept.blocks]
        try:
            for done in waiting:
                done.result()
        except errors.ObjectMissing as error:
            pool.shutdown(cancel_futures=True)
            raise errors.NotVerified(str(error)) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _files(kept: KeptModel, folder: Path) -> Files:
    hashes = {Block(one.name, one.first, one.end): one.sha256 for one in kept.blocks}
    if kept.single is None:
        return Folder(folder, tuple(sorted(kept.sizes)), frozenset(kept.parts), hashes)
    configs = tuple(sorted(name for name in kept.sizes if name != kept.single))
    found = header.read(folder / kept.single)
    return Single(folder, kept.single, found, frozenset(kept.parts), configs, hashes=hashes)
