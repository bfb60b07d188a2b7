"""What a run is made of: the base model and the images, where they lie and what is said of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.places import NO_CONTROLS, ImageFolder, ModelSource, SecretName, closed
from lorafinetune.api.words import rule, ruled, worded
from lorafinetune.contract.model import OpenModel

Caption = Annotated[
    str,
    Field(
        max_length=2048,
        pattern=r"\S",
        json_schema_extra=worded("must hold words, for it stands for captions; or remove the field", NO_CONTROLS),
    ),
]


class BaseModelSpec(OpenModel):
    """The SDXL model that the LoRA is trained on."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                '!has(self.revision) || self.source.startsWith("hf://")',
                "spec.baseModel.revision only goes with an hf:// source: remove it, or let source name a model on the "
                "Hugging Face hub",
                field_path=".revision",
            ),
            rule(
                '!has(self.credentialsSecret) || self.source.startsWith("hf://") || '
                '(has(self.vae) && self.vae.startsWith("hf://"))',
                "spec.baseModel.credentialsSecret is for gated hf:// models: remove it; s3:// sources are read with "
                "spec.storage.credentialsSecret",
                field_path=".credentialsSecret",
            ),
        )
    )

    source: ModelSource
    """Where the SDXL model lies: a diffusers folder as hf://owner/name on the Hugging Face hub, s3://bucket/prefix/ in
    the run's object store or a folder of the trainer's image such as /models/sdxl; or one .safetensors file in one of
    them, such as hf://owner/name/model.safetensors."""
    revision: (
        Annotated[
            str,
            Field(
                max_length=128,
                pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
                json_schema_extra=worded("must be a commit, tag or branch, such as main or a commit's 40 hex digits"),
            ),
        ]
        | None
    ) = None
    """Commit, tag or branch, for hf:// sources. A commit makes the run repeatable. Absent = the default branch."""
    vae: ModelSource | None = None
    """Another VAE than the model's own, from the same kinds of places, for example
    hf://madebyollin/sdxl-vae-fp16-fix. Absent = the model's own."""
    cache: bool = True
    """Keep what a resume needs of an hf:// model in the run's own prefix while the run lives (about 5 GB), so that no
    attempt after the first asks the hub."""
    credentials_secret: SecretName | None = None
    """Secret in the run's namespace with the key HF_TOKEN, for gated models. It must carry the label
    lorafinetune.io/storage: "true"."""


class DatasetSpec(OpenModel):
    """The training images, and images of the class that the subject belongs to."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "!has(self.classImages) || !has(self.classSource)",
                "spec.dataset.classImages is the number of class images to make, and spec.dataset.classSource says "
                "that they are there: remove one of them",
                field_path=".classImages",
            ),
            rule(
                "!has(self.classImages) || has(self.classPrompt)",
                "spec.dataset.classImages needs spec.dataset.classPrompt, from which they are made: set it, such as "
                "photo of a dog, or remove classImages",
                field_path=".classImages",
            ),
            rule(
                "!self.keepClassImages || (has(self.classPrompt) && !has(self.classSource))",
                "spec.dataset.keepClassImages keeps class images that the run makes, and it makes none: remove it, or "
                "set spec.dataset.classPrompt without classSource",
                field_path=".keepClassImages",
            ),
            rule(
                f"!has(self.classSource) || !({closed('self.classSource')}.startsWith({closed('self.source')}) "
                f"|| {closed('self.source')}.startsWith({closed('self.classSource')}))",
                "spec.dataset.classSource and spec.dataset.source are the same place, or one lies inside the other, so "
                "images would count as both: let them lie side by side",
                field_path=".classSource",
            ),
        )
    )

    source: ImageFolder
    """Where the images lie: s3://bucket/prefix/ in the run's object store, or a folder of the trainer's image. A file
    beside an image, of the same name but ending in .txt or .caption, is its caption."""
    instance_prompt: Caption | None = None
    """Caption of every image that has no caption file, for example "photo of timberdog". Absent = every image needs a
    caption file."""
    class_source: ImageFolder | None = None
    """Where images of the class lie (other dogs than yours), from the same kinds of places. They are trained on beside
    your own, so that the model does not forget what the class looks like."""
    class_prompt: Caption | None = None
    """Caption of class images without one, for example "photo of a dog". Without classSource the run makes class images
    from it with the base model, once, before it trains."""
    class_images: Annotated[int, Field(ge=1, le=2000)] | None = None
    """How many class images to make. Default: 100, if there is a classPrompt and no classSource."""
    keep_class_images: bool = False
    """Publish the class images that the run makes in the folder class/ of the artifact, where another run's classSource
    may name them. Else they are deleted when the run has succeeded. May be changed while the run lives, for its next
    attempt."""
