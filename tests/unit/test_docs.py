"""What the documents say is so: each word, link, target, default, metric, code and test that they name is there."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.frozen import EDITABLE
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.kinds import LORAFINETUNE
from lorafinetune.contract.event import Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Training
from lorafinetune.engine import notices
from lorafinetune.engine.classify import PREEMPTIONS, Cause
from lorafinetune.engine.conditions import ConditionType
from lorafinetune.receiver.verdict import Result
from lorafinetune.storage import bucket
from lorafinetune.telemetry import LOG_FIELDS, Metrics

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for place in ROOT.iterdir()
    if not place.name.startswith(".") and place.name not in ("build", "dist")
    for page in (place.rglob("*.md") if place.is_dir() else [place] if place.suffix == ".md" else [])
)
OURS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
DOCS, README = ROOT / "docs", ROOT / "README.md"
REASONS, METRICS, RUN, TRAINING, BUCKET, BY_HAND = (
    DOCS / f"{name}.md" for name in ("reasons", "metrics", "run", "training", "bucket", "by-hand")
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


def section(text: str, title: str) -> str:
    """What stands under a heading, sections within it included."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^#{{1,2}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"there is no section {title!r}"
    return found[2]


def rows(text: str) -> Iterator[list[str]]:
    """The rows of all tables, without their heads; an escaped bar is none."""
    for line in prose(text).splitlines():
        if line.startswith("|") and not re.match(r"^\|[-| :]+\|$", line):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def first_words(text: str) -> list[str]:
    """The words in code in the first column of all tables."""
    return [word for row in rows(text) for word in re.findall(r"`([^`]+)`", row[0])]


# Reasons: the words that the code can put into a status, against docs/reasons.md.

WORD = re.compile(r"^(?:[A-Z][a-z]+|NaN)[A-Za-z]*$")
SPEAKING = [
    *(ROOT / "operator/lorafinetune/engine").glob("*.py"),
    *(
        ROOT / "operator/lorafinetune" / name
        for name in ("act.py", "jobs.py", "witness.py", "loop.py", "complaints.py", "serve.py")
    ),
    *(
        path
        for path in (ROOT / "operator/lorafinetune/storage").glob("*.py")
        if path.name not in ("answers.py", "bucket.py")
    ),
    *(ROOT / "trainer-image/lorafinetune_trainer").rglob("*.py"),
]
"""Modules whose CamelCase strings are words for people."""
NO_REASONS = {
    "Attempt", "Authorization", "AutoencoderKL", "BasicTransformerBlock", "Cause", "ConfigMap",
    "ContainerCannotRun",
    "ContainerCreating", "ContainerStatusUnknown", "DefaultCPUAllocator", "Ending", "Evicted", "FailedAttachVolume",
    "FailedCreatePodSandBox", "FailedMount", "FailedScaleUp", "FailedScheduling", "GenuineIntel", "Hold",
    "InsufficientCapacityError", "Karpenter", "Loading", "LoRAFineTune", "Nominated", "NotTriggerScaleUp",
    "OutOf", "OutOfMemoryError", "PodInitializing", "Reconcile", "SpotInterrupted",
    "SpotRebalanceRecommendation", "TaintManagerEviction", "TerminationTarget", "TriggeredScaleUp", "True", "Unknown",
}  # fmt: skip
"""CamelCase strings of those modules that are no reasons: a new one is either documented or named here."""


def spoken() -> dict[str, str]:
    """Every CamelCase string of the speaking modules, docstrings apart, and where it stands."""
    found: dict[str, str] = {}
    for path in SPEAKING:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
                continue
            if WORD.match(node.value):
                found[node.value] = f"{named(path)}:{node.lineno}"
    return found


def known_words() -> set[str]:
    """Every word that a condition, cause, reason, phase or Kubernetes event of ours can be."""
    words = set(spoken()) - NO_REASONS
    words |= {kind.__name__ for kind in (Fenced, HeadLost)} | {phase.value for phase in Phase}
    words |= {cause.value for cause in Cause} | {kind.value for kind in ConditionType}
    return words | {f"Attempt{cause.value}" for cause in Cause if cause not in PREEMPTIONS}


def test_every_word_of_the_code_is_on_the_page() -> None:
    page = set(first_words(REASONS.read_text(encoding="utf-8"))) | set(notices.CONDITIONS)
    where = spoken()
    missing = {word: where.get(word, "an enum") for word in sorted(known_words() - page)}
    assert not missing, f"docs/reasons.md lacks these words (or name them in NO_REASONS): {missing}"


def test_the_page_keeps_no_word_that_the_code_has_lost() -> None:
    page = {word for word in first_words(REASONS.read_text(encoding="utf-8")) if WORD.match(word)}
    stale = page - known_words() - set(ExitCode.__members__) - notices.CONDITIONS - notices.TAINTS
    assert not stale, f"docs/reasons.md explains words that nothing says any more: {sorted(stale)}"


def test_words_that_are_no_reasons_are_there() -> None:
    assert set(spoken()) >= NO_REASONS, f"no module says {sorted(NO_REASONS - set(spoken()))}: take it out here"


def test_the_phases_are_those_of_the_resource() -> None:
    described = LORAFINETUNE.status.model_fields["phase"].description or ""  # type: ignore[union-attr]
    phases = first_words(section(REASONS.read_text(encoding="utf-8"), "Phases"))
    assert sorted(phases) == sorted(re.findall(r"[A-Z][a-z]+", re.split("[:.]", described)[1].replace(" or ", " ")))


def test_the_conditions_and_causes_are_all_there() -> None:
    text = REASONS.read_text(encoding="utf-8")
    assert first_words(section(text, "Conditions")) == [kind.value for kind in ConditionType]
    causes = section(text, "Why an attempt ended").split("###")[0]
    assert sorted(first_words(causes)) == sorted(cause.value for cause in Cause)


def test_the_marks_of_clouds_are_all_there() -> None:
    marks = section(REASONS.read_text(encoding="utf-8"), "Taken by the platform")
    assert set(first_words(marks)) >= notices.TAINTS | notices.CONDITIONS


def test_exit_codes() -> None:
    table = {row[0]: row[1] for row in rows(section(REASONS.read_text(encoding="utf-8"), "Exit codes of the trainer"))}
    table.pop("code")
    assert table == {str(code.value): f"`{code.name}`" for code in ExitCode}


def test_answers_of_the_webhook() -> None:
    table = [(row[0], row[1]) for row in rows(section(REASONS.read_text(encoding="utf-8"), "Answers of the webhook"))]
    assert sorted(table[1:]) == sorted((str(result.status), f"`{result.label}`") for result in Result)


# Metrics and logs


def test_metrics() -> None:
    made: dict[str, tuple[str, set[str]]] = {}
    for collector in set(Metrics().registry._names_to_collectors.values()):
        if hasattr(collector, "_labelnames"):
            for metric in collector.describe():
                name = f"{metric.name}_total" if metric.type == "counter" else metric.name
                made[name] = (metric.type, set(collector._labelnames))
    table = list(rows(section(METRICS.read_text(encoding="utf-8"), "Metrics")))[1:]
    written = {row[0].strip("`"): (row[1], {one for one in row[2].split(", ") if one}) for row in table}
    assert written == made


def test_log_fields() -> None:
    words = set(re.findall(r"`(\w+)`", section(METRICS.read_text(encoding="utf-8"), "Logs")))
    assert set(LOG_FIELDS) <= words


# Fields and manifests


def field(model: type[BaseModel], path: str) -> Any:
    """The field of that path in JSON's names, such as ``training.lora.rank``."""
    name, _, rest = path.partition(".")
    found = next((one for one in model.model_fields.values() if one.alias == name), None)
    assert found is not None, f"{model.__name__} has no field {name!r}"
    if not rest:
        return found
    inner = [one for one in (found.annotation, *getattr(found.annotation, "__args__", ())) if inspect.isclass(one)]
    return field(next(one for one in inner if issubclass(one, BaseModel)), rest)


def table_of_fields(text: str) -> Iterator[tuple[str, str]]:
    for row in rows(text):
        if not (paths := re.findall(r"`([\w.]+)`", row[0])):
            continue  # the head
        yield from zip(paths, row[1].split(", ") if len(paths) > 1 else [row[1]], strict=True)


@pytest.mark.parametrize(
    ("page", "title", "model"),
    [
        (README, "The fields", LoRAFineTuneSpec),
        (TRAINING, "Training", LoRAFineTuneSpec),
        (TRAINING, "Seeing what it learns", LoRAFineTuneSpec),
        (RUN, "Pools", GPUPoolSpec),
        (BY_HAND, "The run config", RunConfig),
    ],
    ids=["LoRAFineTune", "training", "pictures", "GPUPool", "run config"],
)
def test_defaults_in_tables_are_those_of_the_models(page: Path, title: str, model: type[BaseModel]) -> None:
    for path, written in table_of_fields(section(page.read_text(encoding="utf-8"), title)):
        if path == "spec":
            continue
        found = field(model, path)
        default = None if found.is_required() else found.get_default(call_default_factory=True)
        wanted = "" if default is None or isinstance(default, BaseModel) else default
        assert written == (str(wanted).lower() if isinstance(wanted, bool) else str(wanted)), path


def test_every_field_of_the_training_is_in_its_table() -> None:
    def paths(model: type[BaseModel], above: str) -> Iterator[str]:
        for one in model.model_fields.values():
            inner = one.annotation
            if inspect.isclass(inner) and issubclass(inner, BaseModel):
                yield from paths(inner, f"{above}{one.alias}.")
            else:
                yield f"{above}{one.alias}"

    told = {path for path, _ in table_of_fields(section(TRAINING.read_text(encoding="utf-8"), "Training"))} - {"spec"}
    assert told == set(paths(Training, "training."))


def test_every_field_of_a_pool_is_in_its_table() -> None:
    paths = {path.split(".")[0] for path, _ in table_of_fields(section(RUN.read_text(encoding="utf-8"), "Pools"))}
    assert paths - {"spec"} == {one.alias for one in GPUPoolSpec.model_fields.values()}


def test_needed_fields_are_said_to_be() -> None:
    needed = {
        f"{part.alias}.{one.alias}"
        for part in LoRAFineTuneSpec.model_fields.values()
        if part.is_required()
        for one in part.annotation.model_fields.values()  # type: ignore[union-attr]
        if one.is_required()
    }
    said = re.search(r"Only\s(.*?)\sare needed", README.read_text(encoding="utf-8"), re.DOTALL)
    assert said
    assert set(re.findall(r"`([\w.]+)`", said[1])) == needed


def test_what_stays_editable_is_named() -> None:
    text = prose(section(RUN.read_text(encoding="utf-8"), "Changing and suspending"))
    assert {f"`{path}`" for path in EDITABLE} <= set(re.findall(r"`[^`]+`", text))


def manifests() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in OURS:
        for text in blocks(path.read_text(encoding="utf-8"), "yaml"):
            for one in yaml.safe_load_all(text):
                if isinstance(one, dict) and one.get("kind") in ("LoRAFineTune", "GPUPool"):
                    found.append((f"{named(path)}: {one['kind']} {one['metadata']['name']}", one))
    return found


@pytest.mark.parametrize("one", [one for _, one in manifests()], ids=[name for name, _ in manifests()])
def test_manifests_are_good(one: dict[str, Any]) -> None:
    model = {"LoRAFineTune": LoRAFineTuneSpec, "GPUPool": GPUPoolSpec}[one["kind"]]
    read = model.model_validate(one["spec"])
    assert shape(read.model_dump(mode="json", by_alias=True, exclude_unset=True)) == shape(one["spec"])


def shape(value: Any) -> Any:
    """The names in a JSON value: fields that a model passed over are missing in what it gives back."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def test_there_are_manifests_of_both_kinds() -> None:
    assert {one["kind"] for _, one in manifests()} == {"LoRAFineTune", "GPUPool"}


def test_run_configs_are_good() -> None:
    found = [text for text in blocks(BY_HAND.read_text(encoding="utf-8"), "json") if '"baseModel"' in text]
    assert found
    for text in found:
        RunConfig.model_validate_json(text)


def test_options_of_other_scripts_lead_to_fields_that_are_there() -> None:
    table = list(rows(section(BY_HAND.read_text(encoding="utf-8"), "Coming from other scripts")))[1:]
    paths = [path for row in table for path in re.findall(r"`(\w+(?:\.\w+)+)`", row[2])]
    assert {path.partition(".")[0] for path in paths} >= {"training", "dataset", "checkpoint", "validation", "metrics"}
    for path in paths:
        field(RunConfig, path)


S3_ACTIONS = {
    "delete_objects": {"s3:DeleteObject", "s3:DeleteObjectVersion"},
    "get_bucket_versioning": {"s3:GetBucketVersioning"},
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "list_object_versions": {"s3:ListBucketVersions"},
    "list_objects_v2": {"s3:ListBucket"},
    "put_object": {"s3:PutObject"},
}


def test_permissions_are_those_of_the_requests_that_are_made() -> None:
    source = inspect.getsource(bucket)
    requests = set(re.findall(r"self\._(?:client|once)\.(\w+)\(", source)) - {"get_paginator"}
    requests |= set(re.findall(r"get_paginator\(\"(\w+)\"\)", source))
    (policy,) = [text for text in blocks(BUCKET.read_text(encoding="utf-8"), "json") if '"Statement"' in text]
    allowed = set(re.findall(r"s3:\w+", policy))
    assert allowed == set().union(*(S3_ACTIONS[request] for request in requests))


# Links, targets, tests, form


def anchor(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=map(named, PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"^[a-z]+:", target):
            continue
        place, _, fragment = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), f"{target}: no such file"
        if fragment:
            titles = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
            assert fragment in map(anchor, titles), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=map(named, PAGES))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    said = set(re.findall(r"`make ([a-z][a-z-]*)[^`]*`", text))
    said |= {name for text in blocks(text, "") for name in re.findall(r"^\$? ?make ([a-z][a-z-]*)", text, re.MULTILINE)}
    assert said <= targets


def promised_tests() -> set[str]:
    return {name for path in OURS for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", path.read_text("utf-8"))}


@pytest.mark.parametrize("name", sorted(promised_tests()))
def test_tests_that_hold_promises_exist(name: str) -> None:
    path, _, function = name.partition("::")
    assert (ROOT / path).is_file()
    if function:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in functions


def test_every_promise_names_a_test() -> None:
    table = list(rows(section((ROOT / "docs/design.md").read_text(encoding="utf-8"), "Promises")))[1:]
    assert [row[0].split(".")[0] for row in table] == [str(number) for number in range(1, 9)]
    assert all("`tests/" in row[1] for row in table)


def test_rules_are_named_in_their_order() -> None:
    from lorafinetune.engine.rules import CHAIN

    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    decide = re.search(r"3\. \*\*Decide\.\*\*(.*?)\n4\.", text, re.DOTALL)
    assert decide
    names = [rule.__name__ for rule in CHAIN]
    assert [word for word in re.findall(r"`(\w+)`", decide[1]) if word in names] == names


@pytest.mark.parametrize("page", OURS, ids=map(named, OURS))
def test_lines_are_short_and_files_of_the_repository_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long
    for name in re.findall(r"`((?:operator|trainer-image|tests|docs|examples|crds|charts|locks)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
