"""Promises 3 and 4: what counts as a checkpoint, who may commit, and lost answers judged by their effect."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import canonical, layout
from lorafinetune.contract import head as heads
from lorafinetune.contract.manifest import Manifest
from lorafinetune.contract.runconfig import Storage
from lorafinetune.storage import collect
from lorafinetune.storage import head as stored
from tests.integration.trainer.faults import Fault, Kind, proxy
from tests.integration.trainer.process import CONSTANTS, Run, Trainers
from tests.integration.trainer.s3 import BUCKET


def stop_after(run: Run, step: int) -> None:
    attempt = run.start()
    attempt.wait_for_checkpoint(step)
    attempt.kill(signal.SIGKILL)
    attempt.end()


def sha256(run: Run) -> str:
    return hashlib.sha256(run.file()).hexdigest()


@pytest.fixture(scope="module")
def reference(trainers: Trainers) -> str:
    """The SHA-256 of the undisturbed run's LoRA."""
    run = trainers.run("reference")
    run.finish()
    return sha256(run)


def damage_content(run: Run, folder: str) -> None:
    key = next(one.key for one in run.bucket.walk(folder) if one.key.endswith(".safetensors"))
    body = bytearray(run.bucket.get(key).body)
    body[-1] ^= 1
    run.bucket.put(key, bytes(body))


def damage_manifest(run: Run, folder: str) -> None:
    manifest = Manifest.model_validate_json(run.bucket.get(folder + layout.MANIFEST).body)
    run.bucket.put(folder + layout.MANIFEST, canonical.encode(manifest.model_copy(update={"updates": 1}).to_json()))


def lose_all(run: Run, folder: str) -> None:
    run.bucket.delete([one.key for one in run.bucket.walk(folder)])


@pytest.mark.parametrize("damage", [damage_content, damage_manifest, lose_all])
def test_a_damaged_newest_checkpoint_is_rejected_and_the_older_one_used(
    damage: object, trainers: Trainers, reference: str, name: str
) -> None:
    run = trainers.run(name)
    stop_after(run, 4)
    older, newest = run.head.checkpoints[-2:]
    damage(run, newest.folder)  # type: ignore[operator]
    attempt = run.finish()
    started = attempt.of_type("started")[0]
    assert started["step"] == older.step
    assert f"checkpoint {newest.id} was rejected" in started["message"]
    assert newest.id not in [entry.id for entry in run.head.checkpoints]
    assert not list(run.bucket.walk(newest.folder))
    assert sha256(run) == reference


def test_with_all_checkpoints_damaged_the_run_begins_anew_and_says_so(
    trainers: Trainers, reference: str, name: str
) -> None:
    run = trainers.run(name)
    stop_after(run, 4)
    for entry in run.head.checkpoints:
        damage_content(run, entry.folder)
    attempt = run.finish()
    started = attempt.of_type("started")[0]
    assert started["step"] == 0
    assert started["message"].count("was rejected") == 2
    assert sha256(run) == reference


def test_a_damaged_artifact_is_made_anew(trainers: Trainers, reference: str, name: str) -> None:
    run = trainers.run(name)
    run.finish()
    artifact = run.head.artifact
    assert artifact is not None
    damage_content(run, artifact.folder)
    assert run.start().end() == 0
    again = run.head.artifact
    assert again is not None
    assert again.folder != artifact.folder
    assert sha256(run) == reference


def test_a_half_written_checkpoint_is_invisible_and_swept(trainers: Trainers, reference: str, name: str) -> None:
    run = trainers.run(name)
    stop_after(run, 2)
    head = run.head
    left = layout.checkpoint(head.attempt, 5)
    run.bucket.put(f"{left}state-00000.safetensors", b"half")
    attempt = run.finish()
    assert attempt.of_type("started")[0]["step"] == head.checkpoints[-1].step
    assert not list(run.bucket.walk(left))
    assert sha256(run) == reference


def test_a_zombie_cannot_commit_and_ends_fenced(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 400})
    zombie = run.start()
    zombie.wait_for_checkpoint(2)
    mine = stored.change(
        run.bucket, lambda head: heads.claim(head, run_uid=run.config.run.uid, attempt=2, pod_uid="another")
    )
    assert zombie.end(30) == 76
    assert zombie.last_words.reason == "Fenced"
    after = run.head
    assert after.checkpoints == mine.checkpoints
    assert (after.attempt, after.pod_uid) == (2, "another")


def test_a_fenced_attempt_told_to_end_says_fenced(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 400}, checkpoint={"everySteps": 400})
    zombie = run.start()
    zombie.wait_for(lambda event: event["step"] >= 1)
    stored.change(run.bucket, lambda head: heads.claim(head, run_uid=run.config.run.uid, attempt=2, pod_uid="another"))
    zombie.kill(signal.SIGTERM)
    assert zombie.end(30) == 76
    assert run.head.checkpoints == []
    assert not list(run.bucket.walk(layout.CHECKPOINTS)), "it put nothing that nobody would delete"


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_that_is_not_newer_is_refused(attempt: int, trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    stored.mark_owner(run.bucket, stored.Owner(run_uid=run.config.run.uid))
    stored.change(run.bucket, lambda head: heads.claim(head, run_uid=run.config.run.uid, attempt=2, pod_uid="another"))
    late = run.start("--attempt", str(attempt))
    assert late.end(30) == 76
    assert "attempt 2" in late.last_words.message


def test_a_tombstone_ends_it(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 400})
    attempt = run.start()
    attempt.wait_for_checkpoint(2)
    stored.change(run.bucket, lambda head: heads.bury(head, run_uid=run.config.run.uid, attempt=1))
    assert attempt.end(30) == 76
    assert "deleted" in attempt.last_words.message
    assert run.start().end(30) == 76


def test_a_head_that_vanished_ends_it(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 400})
    attempt = run.start()
    attempt.wait_for_checkpoint(2)
    run.bucket.delete([layout.HEAD])
    assert attempt.end(30) == 76
    assert attempt.last_words.reason == "HeadLost"
    late = run.start("--attempt", "2", "--resume-from", run.bucket.uri("checkpoints/1-2/"))
    assert late.end(30) == 76
    assert late.last_words.reason == "HeadLost"
    assert stored.read(run.bucket).head is None


def test_a_pod_that_starts_after_its_run_was_collected_leaves_nothing(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    late = run.start("--attempt", "1")
    assert late.end(30) == 76
    assert late.last_words.reason == "HeadLost"
    assert list(run.bucket.walk()) == []


def test_an_attempt_cut_off_before_its_first_object_puts_none_after_the_collection(
    trainers: Trainers, name: str
) -> None:
    with proxy(trainers.s3.endpoint) as between:
        # The question what conditioning is there already.
        between.faults = [Fault(Kind.HOLD, "GET", f"/{BUCKET}", query=layout.CONDITIONING)]
        run = trainers.run(name, storage={"endpoint": between.endpoint})
        stored.mark_owner(run.bucket, stored.Owner(run_uid=run.config.run.uid))
        late = run.start("--attempt", "1")
        late.wait_for_phase("Conditioning")
        eventually(lambda: between.happened, 30, "it is about to put conditioning")
        collect.collect(run.bucket, run_uid=run.config.run.uid, attempt=1, keep_artifact=False)
        between.let_go.set()
        assert late.end(60) == 76
    assert late.last_words.reason == "HeadLost"
    assert list(run.bucket.walk()) == []


def test_a_store_without_conditional_writes_must_be_wanted(trainers: Trainers, reference: str, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [Fault(Kind.UNKNOWN, times=1000, header=header) for header in ("if-match", "if-none-match")]
        run = trainers.run(name, storage={"endpoint": between.endpoint})
        refused = run.start()
        assert refused.end() == 78
        assert "unsafeNoFencing" in refused.last_words.message
        assert list(run.bucket.walk()) == []

        wanted = trainers.run(name, storage={"endpoint": between.endpoint, "unsafeNoFencing": True})
        stop_after(wanted, 2)
        wanted.finish()
    assert sha256(wanted) == reference


@pytest.mark.parametrize("kind", [Kind.LOSE_ANSWER, Kind.ERROR_AFTER, Kind.REFUSE, Kind.DROP])
def test_answers_to_head_swaps_get_lost(kind: Kind, trainers: Trainers, reference: str, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        storage = {"endpoint": between.endpoint}
        # Of every three swaps two fail: the claim's, the pin's, the commits', the sweeps' and the publication's.
        between.faults = [Fault(kind, "PUT", layout.HEAD, times=1), Fault(kind, "PUT", layout.OWNER, times=1)]
        run = trainers.run(name, storage=storage)
        attempt = run.start()
        attempt.wait_for_phase("Scanning")
        between.faults.append(Fault(kind, "PUT", layout.HEAD, times=5))
        assert attempt.end() == 0, attempt.tail()
        assert len(between.happened) == 7
        assert run.head.attempt == 1
        assert [entry.id for entry in run.head.checkpoints] == ["1-4", "1-6"]
        assert run.head.garbage == []
    assert sha256(run) == reference


@pytest.mark.parametrize("kind", [Kind.LOSE_ANSWER, Kind.REFUSE, Kind.DROP])
def test_requests_for_content_fail(kind: Kind, trainers: Trainers, reference: str, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [
            Fault(kind, "PUT", contains="/conditioning/", times=2),
            Fault(kind, "PUT", contains="/checkpoints/", times=2),
            Fault(kind, "PUT", contains="/artifacts/", times=2),
            Fault(kind, "GET", contains="/conditioning/", times=2),
        ]
        run = trainers.run(name, storage={"endpoint": between.endpoint})
        run.finish()
        assert len(between.happened) == 8
    assert sha256(run) == reference


def test_a_body_that_breaks_off_is_read_again(trainers: Trainers, reference: str, name: str) -> None:
    run = trainers.run(name)
    stop_after(run, 4)
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [
            Fault(Kind.BREAK_OFF, "GET", contains="/checkpoints/", times=2),
            Fault(Kind.BREAK_OFF, "GET", contains="/conditioning/", times=2),
        ]
        storage = run.config.storage.model_copy(update={"endpoint": between.endpoint})
        attempt = run.finish(storage=storage)
        assert len(between.happened) == 4
    assert attempt.of_type("started")[0]["step"] == 4
    assert sha256(run) == reference


def test_a_conditioning_object_of_an_earlier_attempt_counts(trainers: Trainers, reference: str, name: str) -> None:
    """What lies there is what is pinned, whoever put it: nothing is computed twice, nothing overwritten."""
    run = trainers.run(name)
    first = run.start()
    first.wait_for_phase("Resuming")
    first.kill(signal.SIGKILL)
    first.end()
    before = {one.key: run.bucket.get(one.key).etag for one in run.bucket.walk(layout.CONDITIONING)}
    head = run.head.model_copy(update={"plan": None, "conditioning": None})
    stored.change(run.bucket, lambda _: head)
    with proxy(trainers.s3.endpoint) as between:
        run.finish(storage=run.config.storage.model_copy(update={"endpoint": between.endpoint}))
        written = {path.rpartition("/")[2] for method, path in between.seen if method == "PUT" and "/cond" in path}
    assert not {key.rpartition("/")[2] for key in before if not key.endswith(".json")} & written
    assert sha256(run) == reference


def test_a_save_that_fails_leaves_nothing_behind(trainers: Trainers, reference: str, name: str) -> None:
    """The second checkpoint's head swap is refused for longer than is waited: training goes on, the folder goes."""
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [Fault(Kind.REFUSE, "PUT", contains="/checkpoints/1-4/manifest.json", times=5)]
        run = trainers.run(name, storage={"endpoint": between.endpoint})
        attempt = run.finish()
        assert len(between.happened) == 5
    assert any("could not be saved" in line.get("note", "") for line in attempt.lines)
    folders = {one.key.split("/")[1] for one in run.bucket.walk("checkpoints/")}
    assert folders == {entry.id for entry in run.head.checkpoints} == {"1-2", "1-6"}
    assert sha256(run) == reference


def test_checkpoints_that_cannot_be_deleted_stop_nothing(trainers: Trainers, reference: str, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [Fault(Kind.REFUSE, "POST", times=1000)]
        run = trainers.run(name, storage={"endpoint": between.endpoint})
        attempt = run.finish()
    assert any("could not be deleted" in line.get("note", "") for line in attempt.lines)
    assert [entry.id for entry in run.head.checkpoints] == ["1-4", "1-6"]
    assert run.head.garbage == ["checkpoints/1-2/"]
    assert sha256(run) == reference


def test_storage_that_stops_answering_ends_it_in_time(trainers: Trainers, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        run = trainers.run(name, storage={"endpoint": between.endpoint}, training={"steps": 5000})
        patience = json.dumps({"lorafinetune_trainer.saving.saver.PATIENCE": 1.0})
        attempt = trainers.start(run.config, [], environment={CONSTANTS: patience})
        attempt.wait_for_checkpoint(2)
        between.faults = [Fault(Kind.DROP, method, times=10_000) for method in ("PUT", "GET", "HEAD", "POST")]
        assert attempt.end(80) == 74
    words = attempt.last_words
    assert words.reason == "StorageUnreachable"
    assert "3 checkpoints in a row" in words.message
    assert 2 <= words.durable_step < words.step
    run.config = run.config.model_copy(
        update={"storage": Storage.model_validate({**run.config.storage.to_json(), "endpoint": trainers.s3.endpoint})}
    )
    again = run.start()
    assert again.wait_for(lambda event: event["type"] == "started")["step"] == words.durable_step
    again.kill(signal.SIGTERM)
    assert again.end(30) == 75


def test_sigterm_while_storage_hangs_ends_within_the_notice(trainers: Trainers, name: str) -> None:
    with proxy(trainers.s3.endpoint) as between:
        run = trainers.run(
            name,
            storage={"endpoint": between.endpoint},
            training={"steps": 5000},
            checkpoint={"everySteps": 5000},
            noticeSeconds=5,
        )
        attempt = run.start()
        attempt.wait_for(lambda event: event["step"] >= 1)
        between.faults = [Fault(Kind.HANG, method, times=10_000) for method in ("PUT", "GET")]
        attempt.kill(signal.SIGTERM)
        assert attempt.end(20) == 75, "no answer comes for longer than that"
    words = attempt.last_words
    assert words.saved == "none"
    assert words.reason in ("NoticeTooShort", "StorageUnreachable")


def test_an_owner_mark_that_is_none_is_refused_with_the_fix(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    run.bucket.put(layout.OWNER, b"{}")
    attempt = run.start()
    assert attempt.end(30) == 78
    assert attempt.last_words.reason == "StorageTaken"
    assert "owner.json is not an owner mark (Field required): delete that object" in attempt.last_words.message
    run.bucket.delete([layout.OWNER])
    run.finish()


def test_a_profile_that_is_not_there(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, storage={"credentials": None})
    attempt = trainers.start(run.config, [], environment={"AWS_PROFILE": "nosuch"})
    assert attempt.end(30) == 78
    assert attempt.last_words.reason == "InvalidCredentials"
    assert "AWS_PROFILE" in attempt.last_words.message


def test_another_runs_prefix_is_refused(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    stored.mark_owner(run.bucket, stored.Owner(run_uid="somebody-else"))
    attempt = run.start()
    assert attempt.end(30) == 78
    assert attempt.last_words.reason == "StorageTaken"
    assert "storage.uri" in attempt.last_words.message


def test_a_storage_answer_says_what_is_wrong(trainers: Trainers, name: str, tmp_path: Path) -> None:
    for key, value in (("AWS_ACCESS_KEY_ID", trainers.s3.key_id), ("AWS_SECRET_ACCESS_KEY", "not-the-key")):
        (tmp_path / key).write_text(value)
    cases = {
        "BucketMissing": ({"uri": "s3://no-such-bucket/"}, 77, "no-such-bucket"),
        "AccessDenied": ({"credentials": str(tmp_path)}, 77, "Secret"),
        "InvalidCredentials": ({"credentials": str(tmp_path / "none")}, 78, "storage.credentials"),
        "InvalidConfig": ({"uri": "loras/"}, 78, "storage.uri"),
    }
    for reason, (storage, code, word) in cases.items():
        attempt = trainers.run(name, storage=storage).start()
        assert attempt.end(60) == code, attempt.tail()
        assert attempt.last_words.reason == reason
        assert word in attempt.last_words.message
        assert trainers.s3.secret_key not in attempt.tail()
