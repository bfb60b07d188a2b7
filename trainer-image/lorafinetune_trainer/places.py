"""The trainer's way to the bucket: credentials from the mounted Secret, the run's own prefix, and any other place."""

from __future__ import annotations

import tempfile
from pathlib import Path

from botocore.exceptions import ProfileNotFound

from lorafinetune.contract.runconfig import KEY_ID, SECRET_KEY, SESSION_TOKEN, STORAGE_CREDENTIALS, RunConfig
from lorafinetune.storage.bucket import Bucket, Credentials
from lorafinetune_trainer.failure import NO_ROOM, invalid


def open_prefix(config: RunConfig) -> Bucket:
    """Return the run's own prefix; raises Failure (INVALID) where URI or credentials cannot be right."""
    try:
        place = config.prefix
    except ValueError as error:
        raise invalid("InvalidConfig", f"storage.uri: {error}") from error
    try:
        bucket = Bucket(
            place,
            endpoint=config.storage.endpoint,
            region=config.storage.region,
            credentials=read_credentials(config.storage.credentials),
        )
    except ProfileNotFound as error:
        raise invalid(
            "InvalidCredentials",
            f"AWS_PROFILE names a profile that is not there ({error}): correct or unset it, or set storage.credentials",
        ) from error
    except ValueError as error:  # boto3's answer to an endpoint that is no URL
        raise invalid(
            "InvalidConfig",
            f"storage.endpoint {config.storage.endpoint} is no URL ({error}): write https://host, or http://host:port",
        ) from error
    return bucket.unfenced() if config.storage.unsafe_no_fencing else bucket


def make_scratch(folder: str | None) -> None:
    """Make the folder for downloads where it is not there; raises Failure (INVALID) where that cannot be."""
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise invalid(
            "InvalidConfig",
            f"scratch {folder} cannot be written to ({error.strerror}): name a folder that can, or remove scratch, "
            "which means a temporary one",
        ) from error


def read_credentials(folder: str | None) -> Credentials | None:
    """Return the keys that lie in the mounted Secret, one file each; None for the environment's own identity."""
    if folder is None:
        return None
    found = {name: _read(Path(folder) / name) for name in (KEY_ID, SECRET_KEY, SESSION_TOKEN)}
    if missing := [name for name in (KEY_ID, SECRET_KEY) if not found[name]]:
        what = "the Secret of storage.credentialsSecret"
        if folder != STORAGE_CREDENTIALS:
            what = f"the folder storage.credentials {folder}"
            if not Path(folder).is_dir():
                raise invalid(
                    "InvalidCredentials",
                    f"storage.credentials {folder} is not a folder: name one that holds the files {KEY_ID} and "
                    f"{SECRET_KEY}, or remove the field and have both in the environment",
                )
        raise invalid("InvalidCredentials", f"{what} lacks {' and '.join(missing)}: add what is missing")
    return Credentials(found[KEY_ID], found[SECRET_KEY], found[SESSION_TOKEN] or None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
