"""Names, texts and places that users write: Secrets, pools, models, data sets; and what may not lie inside what."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from lorafinetune.api.words import Extra, rule, worded

BUCKET: Final = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
FOLDER: Final = r"(/[^/?#\x00-\x1f]+)"
FOLDER_SOURCE: Final = rf"^({BUCKET}{FOLDER}*/?|{FOLDER}+/?)$"
HUB_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MODEL_SOURCE: Final = rf"^(hf://{HUB_PART}/{HUB_PART}({FOLDER}+[.]safetensors)?|{BUCKET}{FOLDER}+/?|{FOLDER}+/?)$"
LORA_SOURCE: Final = rf"^({BUCKET})?{FOLDER}+[.]safetensors$"
NAME: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

NO_DOTS: Final = rule(
    "!self.split('/').exists(part, part == '.' || part == '..')",
    "write the path out: parts that are . or .. mean different places to different stores",
)
NO_PICKLE: Final = rule(
    r"!self.lowerAscii().matches('[.](ckpt|pt|pth|bin)/?$')",
    "must not be a pickled file (.ckpt, .pt, .pth, .bin), for opening one runs the code in it: take the same model as "
    "a .safetensors file, or convert it",
)
NO_CONTROLS: Final = rule(
    r"!self.matches(r'[\x00-\x08\x0b\x0c\x0e-\x1f]')",
    "holds control characters, which no model reads: remove them",
)
NAME_SENTENCE: Final = (
    "must be the name of a Kubernetes object: lower-case letters, digits, - and ., beginning and ending with a letter "
    "or digit"
)
PARTS_SENTENCE: Final = (
    "a bucket's name has 3 to 63 lower-case letters, digits, - and ., and no part of a path is empty or holds ? or #"
)
MODEL_SENTENCE: Final = (
    "must be hf://owner/name (a diffusers model on the Hugging Face hub; its revision has a field of its own), "
    "s3://bucket/prefix/ or an absolute folder of the trainer's image such as /models/sdxl; or one .safetensors file "
    f"in one of them, such as hf://owner/name/model.safetensors; {PARTS_SENTENCE}"
)
FOLDER_SENTENCE: Final = (
    "must be s3://bucket/prefix/ (in the run's object store) or an absolute folder of the trainer's image such as "
    f"/data/images; {PARTS_SENTENCE}"
)
LORA_SENTENCE: Final = (
    "must be one .safetensors file: s3://bucket/key.safetensors in the run's object store, or an absolute path of the "
    f"trainer's image; {PARTS_SENTENCE}"
)

SecretName = Annotated[str, Field(max_length=253, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))]
PoolName = Annotated[str, Field(max_length=63, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))]
ModelSource = Annotated[
    str,
    Field(max_length=1024, pattern=MODEL_SOURCE, json_schema_extra=worded(MODEL_SENTENCE, NO_DOTS, NO_PICKLE)),
]
ImageFolder = Annotated[
    str, Field(max_length=1024, pattern=FOLDER_SOURCE, json_schema_extra=worded(FOLDER_SENTENCE, NO_DOTS))
]


def closed(path: str) -> str:
    """Return the CEL for the place at *path* as a folder's name, with a slash at its end."""
    return f'({path}.endsWith("/") ? {path} : {path} + "/")'


def storage_outside(member: str, taken_for: str) -> Extra:
    """Return the rule of a spec that the run must not write where its *member* is read from."""
    parent, _, name = member.rpartition(".")
    return rule(
        f'!has(self.{parent}.{name}) || !self.{member}.startsWith("s3://") '
        f'|| !(self.storage.uri + "/").startsWith({closed(f"self.{member}")})',
        f"spec.storage.uri lies inside spec.{member}, so the run's own files would be taken for {taken_for}: "
        "choose a prefix beside it, for example s3://bucket/loras/",
        field_path=".storage.uri",
    )
