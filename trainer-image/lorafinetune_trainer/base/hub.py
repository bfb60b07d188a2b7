"""Base models on the Hugging Face hub, through its own client: a repository, or one file in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.runconfig import HUB_CREDENTIALS, HUB_TOKEN, BaseModelSource
from lorafinetune_trainer.base.header import Header, Tensor
from lorafinetune_trainer.base.places import Means, room, single_name
from lorafinetune_trainer.base.traffic import Traffic
from lorafinetune_trainer.failure import Failure, explain, invalid

TIMEOUT: Final = 30.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Repository:
    """One commit of a model repository: all files then come from one state of it."""

    field: str
    uri: str
    name: str
    commit: str
    wanted_revision: str | None
    token: str | None
    single: str | None
    """Relative to the repository, with the folders that it lies in."""
    sizes: dict[str, int]
    traffic: Traffic

    @property
    def names(self) -> frozenset[str]:
        """The repository's files."""
        return frozenset(self.sizes)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the header of the single file says, without fetching more of it."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        assert self.single is not None
        single = self.single
        try:
            found = ask(
                self.field,
                self.uri,
                self.wanted_revision,
                lambda: HfApi(token=self.token).parse_safetensors_file_metadata(
                    self.name, single, revision=self.commit, timeout=TIMEOUT
                ),
            )
        except Failure as failure:
            if isinstance(failure.__cause__, SafetensorsParsingError):
                raise ValueError(f"its header is damaged ({failure.__cause__})") from failure
            raise
        return {
            name: Tensor(str(one.dtype), tuple(one.shape), one.data_offsets[0], one.data_offsets[1])
            for name, one in found.tensors.items()
        }

    def bring(self, names: Iterable[str]) -> Path:
        """Have the hub's client download files into its cache, and return the folder in which they appear."""
        from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

        patterns = sorted(names)
        new = [one for one in patterns if not isinstance(self._try(try_to_load_from_cache, one), str)]
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with room(cache, sum(self.sizes.get(one, 0) for one in new), f"{self.field} {self.uri}"):
            found = ask(
                self.field,
                self.uri,
                self.wanted_revision,
                lambda: snapshot_download(self.name, revision=self.commit, allow_patterns=patterns, token=self.token),
            )
        folder = Path(found)
        for one in new:
            if (folder / one).is_file():
                self.traffic.add((folder / one).stat().st_size)
        return folder

    def bring_spans(self, spans: Callable[[Header], list[tuple[int, int]]]) -> Path:
        """Download the whole single file: what a resume needs of it lies in the run's own bucket."""
        assert self.single is not None
        return self.bring([self.single])

    def _try(self, look: Callable[..., object], name: str) -> object:
        return look(self.name, name, revision=self.commit)


def open_repository(field: str, uri: str, source: BaseModelSource, means: Means) -> Repository:
    """Ask the hub what lies at *uri*, ``hf://owner/name`` or ``hf://owner/name/file``; raises Failure."""
    from huggingface_hub import HfApi

    single = single_name(uri)
    words = uri.removeprefix("hf://").strip("/").split("/")
    name, inside = "/".join(words[:2]), "/".join(words[2:])
    if bool(inside) != (single is not None):
        raise invalid(
            "WrongBaseModel",
            f"{field} {uri} is not of the form hf://owner/name, nor hf://owner/name/file.safetensors",
        )
    token = read_token(source.hub_credentials)
    info = ask(
        field,
        uri,
        source.revision,
        lambda: HfApi(token=token).model_info(name, revision=source.revision, timeout=TIMEOUT, files_metadata=True),
    )
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    if single is not None and inside not in sizes:
        raise invalid("WrongBaseModel", f"{field} {uri} does not exist on the hub: {name} has no file {inside}")
    assert info.sha is not None
    return Repository(field, uri, name, info.sha, source.revision, token, inside or None, sizes, means.traffic)


def ask(field: str, uri: str, revision: str | None, call: Callable[[], _Answer]) -> _Answer:
    """Return the hub's answer; what its client raises becomes the failure that says what to do."""
    try:
        return call()
    except Exception as error:  # its HTTP library raises errors of its own kinds
        raise _translate(field, uri, revision, error) from error


def read_token(folder: str | None) -> str | None:
    """Return the hub token that lies in the mounted Secret, or None."""
    if folder is None:
        return None
    try:
        return (Path(folder) / HUB_TOKEN).read_text().strip() or None
    except OSError as error:
        where = "baseModel.credentialsSecret has no key"
        if folder != HUB_CREDENTIALS:
            where = f"baseModel.hubCredentials {folder} has no file"
        raise invalid("BaseModelDenied", f"{where} {HUB_TOKEN}: put the hub token under that name") from error


def _translate(field: str, uri: str, revision: str | None, error: Exception) -> Failure:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return invalid(
            "BaseModelDenied",
            f"{field} {uri} is gated: accept its terms and set baseModel.credentialsSecret (by hand: "
            "baseModel.hubCredentials)",
        )
    if isinstance(error, RevisionNotFoundError):
        return invalid("WrongBaseModel", f"{field} {uri} has no revision {revision!r}")
    if isinstance(error, RepositoryNotFoundError | HFValidationError | EntryNotFoundError):
        return invalid("WrongBaseModel", f"{field} {uri} does not exist on the hub, or needs a token")
    if (found := explain(error)).reason == "DiskFull":
        return found
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failure(ExitCode.STORAGE_UNREACHABLE, "HubUnreachable", f"the hub does not give {uri}: {why}")
