"""The bad manifests: what a user may get wrong, and what the API server must answer to it.

Each is one mistake in an otherwise good manifest; the answer must point at ``field`` and hold ``words``, which say what
would be right.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from tests.manifests import REMOVED


class Bad(NamedTuple):
    """One mistake."""

    mistake: str
    changes: dict[str, Any]
    field: str
    words: str


MODEL: Final = "must be hf://owner/name"
PICKLED: Final = "must not be a pickled file (.ckpt, .pt, .pth, .bin)"
BUCKET: Final = "a bucket's name has 3 to 63 lower-case letters, digits, - and ."
FOLDER: Final = "must be s3://bucket/prefix/ (in the run's object store) or an absolute folder"
URI: Final = "must be s3://bucket/prefix/: a bucket name of 3 to 63 lower-case letters, digits, - and ."
ENDPOINT: Final = "must be the URL of the S3 service, https://host or https://host:port, without user, path or query"
NAME: Final = "must be the name of a Kubernetes object: lower-case letters, digits, - and ."
DURATION: Final = "must be a duration in hours, minutes and seconds, such as 90s, 20m or 1h30m"
INSTANT: Final = "must be a time of this century with its zone, such as 2026-12-24T18:00:00Z"
DEADLINE: Final = "spec.limits.deadline"
PENDING: Final = "spec.placement.onDemand.afterPending"
CLASSES: Final = "spec.dataset.classSource"
SIDE: Final = "or one lies inside the other, so images would count as both: let them lie side by side"
SOURCE, REVISION, VAE = "spec.baseModel.source", "spec.baseModel.revision", "spec.baseModel.vae"

BAD_PLACES: Final = (
    Bad("name longer than a label", {"metadata.name": "x" * 64}, "metadata.name", "may not be more than 63 bytes"),
    Bad("name in capitals", {"metadata.name": "Timber"}, "metadata.name", "must consist of lower case alphanumeric"),
    Bad("no spec", {"spec": REMOVED}, "spec", "Required value"),
    Bad("misspelt field", {"spec.chekpoint": {}}, "spec.chekpoint", "unknown field"),
    Bad("misspelt nested field", {"spec.training.learning_rate": 1e-4}, "spec.training.learning_rate", "unknown field"),
    Bad("no base model", {"spec.baseModel": REMOVED}, "spec.baseModel", "Required value"),
    Bad("base model without source", {SOURCE: REMOVED}, SOURCE, "Required value"),
    Bad("base model as text", {"spec.baseModel": "sdxl"}, "spec.baseModel", "must be of type object"),
    Bad("base model by hub name alone", {SOURCE: "stabilityai/sdxl"}, SOURCE, MODEL),
    Bad("base model without owner", {SOURCE: "hf://sdxl"}, SOURCE, MODEL),
    Bad("base model by web address", {SOURCE: "https://example.com/sdxl"}, SOURCE, MODEL),
    Bad("base model in a relative folder", {SOURCE: "models/sdxl"}, SOURCE, MODEL),
    Bad("base model in a bucket's root", {SOURCE: "s3://models", REVISION: REMOVED}, SOURCE, MODEL),
    Bad("base model in a .ckpt", {SOURCE: "s3://models/sdxl.ckpt", REVISION: REMOVED}, SOURCE, PICKLED),
    Bad("base model in a .CKPT", {SOURCE: "/models/SDXL.CKPT", REVISION: REMOVED}, SOURCE, PICKLED),
    Bad("VAE in a .pt", {VAE: "/models/vae.pt"}, VAE, PICKLED),
    Bad("base model in a .ckpt on the hub", {SOURCE: "hf://owner/name/sdxl.ckpt"}, SOURCE, PICKLED),
    Bad("folder of a repository on the hub", {SOURCE: "hf://owner/name/unet"}, SOURCE, "one .safetensors file"),
    Bad("base model in a bucket of one letter", {SOURCE: "s3://a/b/", REVISION: REMOVED}, SOURCE, BUCKET),
    Bad(
        "base model with its revision", {SOURCE: "hf://owner/name@main"}, SOURCE, "its revision has a field of its own"
    ),
    Bad("cache as text", {"spec.baseModel.cache": "yes"}, "spec.baseModel.cache", "must be of type boolean"),
    Bad("base model empty", {SOURCE: ""}, SOURCE, MODEL),
    Bad("base model with a way up", {SOURCE: "/models/../sdxl", REVISION: REMOVED}, SOURCE, "write the path out"),
    Bad("base model too long", {SOURCE: "hf://a/" + "b" * 1100}, SOURCE, "may not be more than 1024 bytes"),
    Bad("revision of a bucket", {SOURCE: "s3://models/sdxl/"}, REVISION, "only goes with an hf:// source: remove it"),
    Bad("revision with blanks", {REVISION: "the newest"}, REVISION, "must be a commit, tag or branch"),
    Bad("VAE by hub name alone", {VAE: "madebyollin/sdxl-vae"}, VAE, MODEL),
    Bad(
        "hub secret without hub",
        {SOURCE: "/models/sdxl", REVISION: REMOVED, VAE: REMOVED},
        "spec.baseModel.credentialsSecret",
        "is for gated hf:// models: remove it",
    ),
    Bad(
        "hub secret misnamed",
        {"spec.baseModel.credentialsSecret": "My_Secret"},
        "spec.baseModel.credentialsSecret",
        NAME,
    ),
    Bad("no dataset", {"spec.dataset": REMOVED}, "spec.dataset", "Required value"),
    Bad("dataset without source", {"spec.dataset.source": REMOVED}, "spec.dataset.source", "Required value"),
    Bad("dataset on the hub", {"spec.dataset.source": "hf://me/images"}, "spec.dataset.source", FOLDER),
    Bad("dataset in a relative folder", {"spec.dataset.source": "./images"}, "spec.dataset.source", FOLDER),
    Bad("dataset in another cloud", {"spec.dataset.source": "gs://training-data/x/"}, "spec.dataset.source", FOLDER),
    Bad("dataset with a query", {"spec.dataset.source": "s3://data/x?y"}, "spec.dataset.source", FOLDER),
    Bad("dataset with empty part", {"spec.dataset.source": "s3://data//x/"}, "spec.dataset.source", FOLDER),
    Bad(
        "prompt of blanks",
        {"spec.dataset.instancePrompt": "  "},
        "spec.dataset.instancePrompt",
        "must hold words, for it stands for captions",
    ),
    Bad(
        "prompt empty",
        {"spec.dataset.instancePrompt": ""},
        "spec.dataset.instancePrompt",
        "must hold words, for it stands for captions",
    ),
    Bad(
        "prompt with control characters",
        {"spec.dataset.instancePrompt": "a\x07dog"},
        "spec.dataset.instancePrompt",
        "holds control characters, which no model reads: remove them",
    ),
    Bad("dataset in a bucket of one letter", {"spec.dataset.source": "s3://a/b/"}, "spec.dataset.source", BUCKET),
    Bad("classes in a bucket of one letter", {CLASSES: "s3://a/b/"}, CLASSES, BUCKET),
    Bad("classes in a bucket in capitals", {CLASSES: "s3://Dogs/"}, CLASSES, BUCKET),
    Bad("classes on the hub", {CLASSES: "hf://me/dogs"}, CLASSES, FOLDER),
    Bad("classes in a relative folder", {CLASSES: "dogs"}, CLASSES, FOLDER),
    Bad("classes among the images", {CLASSES: "s3://training-data/timber/class"}, CLASSES, SIDE),
    Bad("images among the classes", {CLASSES: "s3://training-data/"}, CLASSES, SIDE),
    Bad("classes where the images are", {CLASSES: "s3://training-data/timber"}, CLASSES, SIDE),
    Bad(
        "storage below the classes",
        {CLASSES: "s3://loras/dogs/", "spec.storage.uri": "s3://loras/dogs/runs/"},
        "spec.storage.uri",
        "lies inside spec.dataset.classSource, so the run's own files would be taken for class images",
    ),
    Bad("class prompt of blanks", {"spec.dataset.classPrompt": " "}, "spec.dataset.classPrompt", "must hold words"),
    Bad(
        "class images without prompt",
        {"spec.dataset.classImages": 50},
        "spec.dataset.classImages",
        "needs spec.dataset.classPrompt, from which they are made: set it",
    ),
    Bad(
        "class images that are there, and to be made",
        {CLASSES: "s3://training-data/dogs/", "spec.dataset.classPrompt": "a dog", "spec.dataset.classImages": 50},
        "spec.dataset.classImages",
        "spec.dataset.classSource says that they are there: remove one of them",
    ),
    Bad(
        "class images kept where none are made",
        {"spec.dataset.keepClassImages": True},
        "spec.dataset.keepClassImages",
        "keeps class images that the run makes, and it makes none: remove it, or set",
    ),
    Bad(
        "class images kept that were there",
        {CLASSES: "s3://training-data/dogs/", "spec.dataset.keepClassImages": True},
        "spec.dataset.keepClassImages",
        "set spec.dataset.classPrompt without classSource",
    ),
    Bad(
        "no class image",
        {"spec.dataset.classPrompt": "a dog", "spec.dataset.classImages": 0},
        "spec.dataset.classImages",
        "should be greater than or equal to 1",
    ),
    Bad(
        "prompt too long",
        {"spec.dataset.instancePrompt": "word " * 500},
        "spec.dataset.instancePrompt",
        "may not be more than 2048 bytes",
    ),
    Bad("no storage", {"spec.storage": REMOVED}, "spec.storage", "Required value"),
    Bad("storage without uri", {"spec.storage.uri": REMOVED}, "spec.storage.uri", "Required value"),
    Bad("bucket alone", {"spec.storage.uri": "loras"}, "spec.storage.uri", URI),
    Bad("bucket in capitals", {"spec.storage.uri": "s3://Loras/"}, "spec.storage.uri", URI),
    Bad("bucket too short", {"spec.storage.uri": "s3://lo/"}, "spec.storage.uri", URI),
    Bad("bucket by web address", {"spec.storage.uri": "https://loras.s3.amazonaws.com/"}, "spec.storage.uri", URI),
    Bad("prefix with blanks", {"spec.storage.uri": "s3://loras/my runs/"}, "spec.storage.uri", URI),
    Bad("prefix with empty part", {"spec.storage.uri": "s3://loras//runs/"}, "spec.storage.uri", URI),
    Bad("prefix with a way up", {"spec.storage.uri": "s3://loras/a/../b/"}, "spec.storage.uri", "write the path out"),
    Bad(
        "storage where the images lie",
        {"spec.dataset.source": "s3://loras/"},
        "spec.storage.uri",
        "lies inside spec.dataset.source, so the run's own files would be taken for training images: choose a prefix",
    ),
    Bad(
        "storage below the images",
        {"spec.dataset.source": "s3://loras/timber", "spec.storage.uri": "s3://loras/timber/runs/"},
        "spec.storage.uri",
        "lies inside spec.dataset.source",
    ),
    Bad(
        "storage below the base model",
        {SOURCE: "s3://loras/sdxl/", REVISION: REMOVED, "spec.storage.uri": "s3://loras/sdxl/runs"},
        "spec.storage.uri",
        "lies inside spec.baseModel.source",
    ),
    Bad("endpoint without scheme", {"spec.storage.endpoint": "minio:9000"}, "spec.storage.endpoint", ENDPOINT),
    Bad("endpoint with path", {"spec.storage.endpoint": "https://minio/loras"}, "spec.storage.endpoint", ENDPOINT),
    Bad("endpoint with keys", {"spec.storage.endpoint": "https://key:secret@s3"}, "spec.storage.endpoint", ENDPOINT),
    Bad("endpoint with query", {"spec.storage.endpoint": "https://minio/?x=1"}, "spec.storage.endpoint", ENDPOINT),
    Bad(
        "endpoint of the node's own metadata",
        {"spec.storage.endpoint": "http://169.254.169.254/"},
        "spec.storage.endpoint",
        "must not be a link-local address: name the S3 service by its host name",
    ),
    Bad(
        "region with blanks", {"spec.storage.region": "EU Frankfurt"}, "spec.storage.region", "must be a region's name"
    ),
    Bad("storage secret misnamed", {"spec.storage.credentialsSecret": "R2"}, "spec.storage.credentialsSecret", NAME),
    Bad(
        "keys in the manifest",
        {"spec.storage.credentialsSecret": {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}},
        "spec.storage.credentialsSecret",
        "unknown field",
    ),
    Bad(
        "unknown onDelete",
        {"spec.storage.onDelete": "Delete"},
        "spec.storage.onDelete",
        'supported values: "KeepArtifact", "DeleteAll"',
    ),
    Bad("pool as text", {"spec.placement.pools": "spot-4090"}, "spec.placement.pools", "must be of type array"),
    Bad("pool twice", {"spec.placement.pools": ["a", "a"]}, "spec.placement.pools[1]", "Duplicate value"),
    Bad("pool misnamed", {"spec.placement.pools": ["Spot_4090"]}, "spec.placement.pools[0]", NAME),
    Bad("pool without name", {"spec.placement.pools": [""]}, "spec.placement.pools[0]", NAME),
    Bad(
        "too many pools",
        {"spec.placement.pools": [f"pool-{n}" for n in range(17)]},
        "spec.placement.pools",
        "must have at most 16 items",
    ),
    Bad(
        "no on-demand pool",
        {"spec.placement.onDemand.pools": []},
        "spec.placement.onDemand.pools",
        "should have at least 1 items",
    ),
    Bad(
        "on-demand without pools",
        {"spec.placement.onDemand": {"afterPreemptions": 2}},
        "spec.placement.onDemand.pools",
        "Required value",
    ),
    Bad(
        "on demand at once",
        {"spec.placement.onDemand.afterPreemptions": 0},
        "spec.placement.onDemand.afterPreemptions",
        "should be greater than or equal to 1",
    ),
    Bad(
        "one pool in both lists",
        {"spec.placement.onDemand.pools": ["spot-a10g"]},
        "spec.placement.onDemand.pools",
        "a pool is either tried first or fallen back to, remove it from one of them",
    ),
    Bad("suspend as text", {"spec.suspend": "yes"}, "spec.suspend", "must be of type boolean"),
    Bad("unknown order", {"spec.placement.order": "Cheapest"}, "spec.placement.order", '"CheapestFirst"'),
    Bad("pending in minutes", {PENDING: 20}, PENDING, "must be of type string"),
    Bad("pending without unit", {PENDING: "20"}, PENDING, DURATION),
    Bad("pending for no time", {PENDING: "0m"}, PENDING, "must be longer than nothing"),
    Bad("duration in days", {"spec.limits.maxDuration": "2d"}, "spec.limits.maxDuration", DURATION),
    Bad("deadline in words", {DEADLINE: "tomorrow"}, DEADLINE, INSTANT),
    Bad("deadline without a zone", {DEADLINE: "2026-12-24T18:00:00"}, DEADLINE, INSTANT),
    Bad("deadline in a zone that is none", {DEADLINE: "2036-12-24T18:00:00+99:99"}, DEADLINE, INSTANT),
    Bad("deadline in year 0", {DEADLINE: "0000-01-01T00:00:00Z"}, DEADLINE, INSTANT),
    Bad("deadline with a letter for a point", {DEADLINE: "2036-12-24T18:00:00x5Z"}, DEADLINE, INSTANT),
    Bad("deadline on a day that is none", {DEADLINE: "2027-02-29T00:00:00Z"}, DEADLINE, INSTANT),
    Bad("deadline of another century", {DEADLINE: "2126-12-24T18:00:00Z"}, DEADLINE, INSTANT),
    Bad("cost with currency", {"spec.limits.maxCost": "$5"}, "spec.limits.maxCost", 'such as "2.50"'),
    Bad("cost too fine", {"spec.limits.maxCost": "0.0000001"}, "spec.limits.maxCost", "6 after the point"),
    Bad("no cost at all", {"spec.limits.maxCost": "0.00"}, "spec.limits.maxCost", "must be more than nothing"),
    Bad(
        "on demand for a deadline that is not there",
        {"spec.placement.onDemand": {"pools": ["sure"], "whenDeadlineNeedsIt": True}},
        "spec.placement.onDemand.whenDeadlineNeedsIt",
        "needs a deadline: set spec.limits.deadline",
    ),
    Bad(
        "negative attempts",
        {"spec.limits.attempts": {"trainingErrors": -1}},
        "spec.limits.attempts.trainingErrors",
        "should be greater than or equal to 0",
    ),
    Bad("unknown at limit", {"spec.limits.atLimit": "Stop"}, "spec.limits.atLimit", '"Fail", "Publish"'),
    Bad("queue misnamed", {"spec.queueName": "Team A"}, "spec.queueName", NAME),
    Bad(
        "end that deletes the artifact",
        {"spec.ttlSecondsAfterFinished": 60, "spec.storage.onDelete": "DeleteAll"},
        "spec.ttlSecondsAfterFinished",
        "would delete the artifact",
    ),
)

SELECTOR, TOLERATIONS = "spec.nodeSelector", "spec.tolerations"
PRICE: Final = '6 after the point, without currency, such as "0.348"'
LABEL: Final = "must be a label's value: at most 63 letters, digits, -, _ and ."

BAD_POOLS: Final = (
    Bad("name longer than a label", {"metadata.name": "x" * 64}, "metadata.name", "may not be more than 63 bytes"),
    Bad("no capacity type", {"spec.capacityType": REMOVED}, "spec.capacityType", "Required value"),
    Bad(
        "unknown capacity type",
        {"spec.capacityType": "spot"},
        "spec.capacityType",
        'supported values: "Spot", "OnDemand"',
    ),
    Bad("no selector", {SELECTOR: REMOVED}, SELECTOR, "Required value"),
    Bad("empty selector", {SELECTOR: {}}, SELECTOR, "should have at least 1 properties"),
    Bad("selector with bad key", {SELECTOR: {"gpu type": "x"}}, SELECTOR, "each must be name or domain/name"),
    Bad("selector with long key", {SELECTOR: {"x" * 64: "x"}}, SELECTOR, "each must be name or domain/name"),
    Bad("selector with bad value", {SELECTOR: {"gpu": "RTX 4090"}}, "spec.nodeSelector[gpu]", LABEL),
    Bad("selector with a switch", {SELECTOR: {"spot": True}}, "spec.nodeSelector.spot", "must be of type string"),
    Bad(
        "too many labels",
        {SELECTOR: {f"l{n}": "x" for n in range(17)}},
        SELECTOR,
        "must have at most 16 items",
    ),
    Bad("toleration without key", {TOLERATIONS: [{}]}, "spec.tolerations[0].key", "Required value"),
    Bad("toleration of another case", {TOLERATIONS: [{"key": "A.b/c"}]}, "spec.tolerations[0].key", "in lower case"),
    Bad("toleration of bad key", {TOLERATIONS: [{"key": "a b"}]}, "spec.tolerations[0].key", "must be name or domain"),
    Bad(
        "toleration of any value, and of one",
        {TOLERATIONS: [{"key": "gpu", "operator": "Exists", "value": "yes"}]},
        "spec.tolerations[0].value",
        "only goes with operator Equal: remove value, or operator Exists",
    ),
    Bad(
        "toleration with unknown operator",
        {TOLERATIONS: [{"key": "gpu", "operator": "In"}]},
        "spec.tolerations[0].operator",
        'supported values: "Exists", "Equal"',
    ),
    Bad(
        "toleration of unknown effect",
        {TOLERATIONS: [{"key": "gpu", "effect": "NoRun"}]},
        "spec.tolerations[0].effect",
        'supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"',
    ),
    Bad(
        "toleration of bad value",
        {TOLERATIONS: [{"key": "gpu", "value": "a b"}]},
        "spec.tolerations[0].value",
        LABEL,
    ),
    Bad("resource without domain", {"spec.gpu.resource": "gpu"}, "spec.gpu.resource", "such as nvidia.com/gpu"),
    Bad("two GPUs", {"spec.gpu.count": 2}, "spec.gpu.count", "Must be 1: an attempt trains on one GPU"),
    Bad("no GPU", {"spec.gpu.count": 0}, "spec.gpu.count", "Must be 1: an attempt trains on one GPU"),
    Bad("memory in text", {"spec.gpu.memoryGiB": "24Gi"}, "spec.gpu.memoryGiB", "must be of type integer"),
    Bad("memory of none", {"spec.gpu.memoryGiB": 0}, "spec.gpu.memoryGiB", "should be greater than or equal to 1"),
    Bad("no price", {"spec.pricePerHour": REMOVED}, "spec.pricePerHour", "Required value"),
    Bad("price as a number", {"spec.pricePerHour": 0.348}, "spec.pricePerHour", "must be of type string"),
    Bad("price with currency", {"spec.pricePerHour": "$0.348"}, "spec.pricePerHour", PRICE),
    Bad("price with comma", {"spec.pricePerHour": "0,348"}, "spec.pricePerHour", PRICE),
    Bad("price below zero", {"spec.pricePerHour": "-1"}, "spec.pricePerHour", PRICE),
    Bad("default as text", {"spec.default": "true"}, "spec.default", "must be of type boolean"),
    Bad("namespace misnamed", {"spec.allowedNamespaces": ["Team A"]}, "spec.allowedNamespaces[0]", NAME),
    Bad("no namespace", {"spec.allowedNamespaces": []}, "spec.allowedNamespaces", "lists nobody: name the namespaces"),
    Bad(
        "no attempts at once",
        {"spec.maxConcurrentAttempts": 0},
        "spec.maxConcurrentAttempts",
        "should be greater than or equal to 1",
    ),
    Bad("timeout in minutes", {"spec.provisioningTimeout": "10"}, "spec.provisioningTimeout", DURATION),
)
