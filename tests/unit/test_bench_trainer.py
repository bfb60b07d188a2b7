"""The pure parts of the trainer's bench: its figures, its table, its marks, and that it measures what was frozen."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench.trainer.attempts import Marks, read
from tests.bench.trainer.figures import Figure, median, render, to_json
from tests.bench.trainer.relay import relay

FIGURES = [
    Figure("seconds per step", 0.4, "s", 1.0, "the reference", 0.5),
    Figure("imports", 3.0, "s", 4.0, "naive imports", 0.5, note="half was not reached"),
    Figure("calls of the VAE on a resume", 0, "", 8, "", 0),
    Figure("share of the wall", 0.02, target=0.01),
    Figure("modules", None, "", 4608.0, "the reference"),
]


def test_a_target_is_met_by_the_ratio_or_where_nothing_stands_beside_by_the_value() -> None:
    assert [one.met for one in FIGURES] == [True, False, True, False, None]
    assert [one.ratio for one in FIGURES] == [0.4, 0.75, 0.0, None, None]


def test_the_table_shows_a_missed_target_and_what_it_is_about() -> None:
    assert render(FIGURES).splitlines() == [
        "| measure | ours | beside | what stands beside | ratio | target | met |",
        "|---|---:|---:|---|---:|---:|---|",
        "| seconds per step | 0.4 s | 1 s | the reference | 0.4x | <= 0.5x | yes |",
        "| imports | 3 s | 4 s | naive imports | 0.75x | <= 0.5x | **no** |",
        "| calls of the VAE on a resume | 0 | 8 | - | 0x | <= 0 | yes |",
        "| share of the wall | 0.02 | - | - | - | <= 0.01 | **no** |",
        "| modules | - | 4,608 | the reference | - | - | - |",
        "",
        "- imports: half was not reached",
    ]


def test_the_json_names_what_was_missed() -> None:
    found = json.loads(json.dumps(to_json(FIGURES, "a machine")))
    assert found["machine"] == "a machine"
    assert found["missed"] == ["imports", "share of the wall"]
    assert found["figures"][0] == {**asdict(FIGURES[0]), "ratio": 0.4, "met": True}


@pytest.mark.parametrize(("values", "middle"), [([], None), ([3.0], 3.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0], 2.5)])
def test_the_median(values: list[float], middle: float | None) -> None:
    assert median(values) == middle


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
