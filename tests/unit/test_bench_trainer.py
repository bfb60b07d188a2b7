"""The pure parts of the trainer's bench: its figures, its table, its marks, and that it measures what was frozen."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench.trainer.attempts import Marks, read
from tests.bench.trainer.figures import Figure, Verdict, interval, median, render, to_json
from tests.bench.trainer.overhead import costs
from tests.bench.trainer.relay import relay

FIGURES = [
    Figure("seconds per step", 0.4, "s", 1.0, "the reference", 0.5),
    Figure("imports", 3.0, "s", 4.0, "naive imports", 0.5, note="half was not reached"),
    Figure("calls of the VAE on a resume", 0, "", 8, "", 0),
    Figure("share of the wall", 0.02, target=0.01),
    Figure("modules", None, "", 4608.0, "the reference"),
    Figure("awake", 8.0, "ms", 0.5, "a process that only waits", 20.0, by_value=True),
    Figure("whole", 9.0, "s", 6.0, "the link", 10.0, by_value=True, spread=(8.0, 11.0)),
    Figure("share", 0.001, "", target=0.01, spread=(-0.002, 0.004)),
    Figure.of_pairs("steps", [(1.0, 4.0), (2.0, 5.0), (4.0, 8.0)], "s", "the reference", target=0.4),
]


def test_a_target_is_met_by_the_ratio_or_where_that_is_meant_or_nothing_stands_beside_by_the_value() -> None:
    yes, no, open_ = Verdict.MET, Verdict.MISSED, Verdict.NOT_SHOWN
    assert [one.met for one in FIGURES] == [yes, no, yes, no, None, yes, open_, yes, open_]
    assert [one.ratio for one in FIGURES] == [0.4, 0.75, 0.0, None, None, 16.0, 1.5, None, 0.4]


def test_a_target_that_all_of_the_spread_misses_is_missed() -> None:
    assert Figure("share", 0.02, target=0.01, spread=(0.011, 0.03)).met is Verdict.MISSED
    assert Figure("share", 0.02, target=0.01, spread=(0.01, 0.03)).met is Verdict.NOT_SHOWN
    assert Figure("share", 0.005, target=0.01, spread=(0.0, 0.01)).met is Verdict.MET


def test_the_table_shows_a_missed_target_and_what_it_is_about() -> None:
    assert render(FIGURES).splitlines() == [
        "| measure | ours | beside | what stands beside | ratio | target | met |",
        "|---|---:|---:|---|---:|---:|---|",
        "| seconds per step | 0.4 s | 1 s | the reference | 0.4x | <= 0.5x | yes |",
        "| imports | 3 s | 4 s | naive imports | 0.75x | <= 0.5x | **no** |",
        "| calls of the VAE on a resume | 0 | 8 | - | 0x | <= 0 | yes |",
        "| share of the wall | 0.02 | - | - | - | <= 0.01 | **no** |",
        "| modules | - | 4,608 | the reference | - | - | - |",
        "| awake | 8 ms | 0.5 ms | a process that only waits | - | <= 20 ms | yes |",
        "| whole | 9 s (8 to 11) | 6 s | the link | - | <= 10 s | **not shown** |",
        "| share | 0.001 (-0.002 to 0.004) | - | - | - | <= 0.01 | yes |",
        "| steps | 2 s | 5 s | the reference | 0.4x (0.25 to 0.5) | <= 0.4x | **not shown** |",
        "",
        "- imports: half was not reached",
    ]


def test_the_json_names_what_was_missed() -> None:
    found = json.loads(json.dumps(to_json(FIGURES, "a machine")))
    assert found["machine"] == "a machine"
    assert found["missed"] == ["imports", "share of the wall"]
    assert found["not shown"] == ["whole", "steps"]
    assert found["figures"][0] == {**asdict(FIGURES[0]), "ratio": 0.4, "met": "yes"}


@pytest.mark.parametrize(("values", "middle"), [([], None), ([3.0], 3.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0], 2.5)])
def test_the_median(values: list[float], middle: float | None) -> None:
    assert median(values) == middle


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (17, (4, 12)), (100, (39, 60))]
)
def test_where_a_median_lies_19_times_in_20(count: int, wanted: tuple[float, float]) -> None:
    """Places from tables of the sign test: 2 P(Bin(count, 1/2) <= place) is at most 0.05."""
    assert interval([float(one) for one in range(count)][::-1]) == wanted


def step(at: float, cpu: float) -> dict[str, object]:
    return {"what": "step", "at": at, "cpu": cpu}


def test_a_checkpoint_is_compared_with_as_many_steps_before_it() -> None:
    snapshot, saved = {"what": "snapshot", "seconds": 0.25}, {"what": "saved"}
    lines: list[dict[str, object]] = [step(1.0, 1.0), snapshot, step(2.0, 2.0), saved, step(3.0, 3.0)]  # the first
    lines += [step(4.0, 4.0), step(5.0, 4.5), step(6.0, 5.0)]
    lines += [snapshot, step(7.5, 6.0), saved, step(9.0, 8.0)]  # two steps that took 1 s and 2 s of the CPU more
    lines += [step(10.0, 9.0), snapshot, step(12.0, 10.0), saved, step(14.0, 11.0)]  # too soon after the one before
    lines += [step(float(one), 12.0) for one in range(15, 19)] + [snapshot, saved]  # the last: no step follows
    (only,) = costs(Marks(0.0, tuple(lines)))
    assert (only.steps, only.wall, only.cpu, only.held) == (2, 1.0, 2.0, 0.25)


def test_what_an_attempts_marks_say(tmp_path: Path) -> None:
    told = [
        {"what": "import begins", "at": 101.0},
        {"what": "imported", "at": 104.0, "modules": 7},
        {"what": "loop begins", "at": 105.0, "step": 2},
        {"what": "step", "at": 105.5, "step": 3},
        {"what": "step", "at": 105.75, "step": 4},
        {"what": "loop ends", "at": 106.0, "step": 4},
    ]
    path = tmp_path / "marks"
    path.write_text("".join(json.dumps(one) + "\n" for one in told))
    marks = Marks(100.0, tuple(read(path)))
    assert (marks.importing, marks.after_imports, marks.first_step) == (3.0, 1.5, 5.5)
    assert (marks.step_seconds, marks.loop_seconds) == ([0.25], 1.0)
    with pytest.raises(LookupError, match="claims"):
        marks.first("claims")
    assert list(read(tmp_path / "none yet")) == []


def test_the_relay_counts_each_direction() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        relay(f"http://127.0.0.1:{server.getsockname()[1]}") as counts,
    ):
        where = ("127.0.0.1", int(counts.endpoint.rpartition(":")[2]))
        with socket.create_connection(where, timeout=10) as client:
            inside, _ = server.accept()
            with inside:
                client.sendall(b"x" * 1000)
                client.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: inside.recv(4096), b"")) == b"x" * 1000
                inside.sendall(b"y" * 300)
            assert b"".join(iter(lambda: client.recv(4096), b"")) == b"y" * 300
        assert (counts.up, counts.down) == (1000, 300)
