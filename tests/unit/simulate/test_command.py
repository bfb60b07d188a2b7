"""``lorafinetune simulate`` as people type it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lorafinetune.simulate import command
from lorafinetune.simulate.manifests import OptionError
from lorafinetune.simulate.options import parse
from lorafinetune.simulate.traces import body_of, read
from tests.unit.simulate.given import traces

SMALL = ["--generate", "4", "--runs", "2", "--work", "1h", "--deadline", "6h", "--jobs", "1"]

POOLS = """
apiVersion: lorafinetune.io/v1alpha1
kind: GPUPool
metadata: {name: cheap}
spec:
  capacityType: Spot
  nodeSelector: {pool: cheap}
  gpu: {product: A10G}
  pricePerHour: "0.40"
---
apiVersion: lorafinetune.io/v1alpha1
kind: GPUPool
metadata: {name: dear}
spec: {capacityType: OnDemand, nodeSelector: {pool: dear}, gpu: {product: A10G}, pricePerHour: "1.20"}
"""
RUN = """
apiVersion: lorafinetune.io/v1alpha1
kind: LoRAFineTune
metadata: {name: timber}
spec:
  baseModel: {source: hf://stabilityai/stable-diffusion-xl-base-1.0}
  dataset: {source: s3://data/timber/}
  training: {steps: 1200}
  storage: {uri: s3://loras/}
  placement: {pools: [cheap], onDemand: {pools: [dear], afterPending: 20m}}
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    path = tmp_path / "all.yaml"
    path.write_text(f"{POOLS}---{RUN}")
    return path


def test_it_prints_a_line_for_each_policy(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(SMALL)
    printed, told = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].startswith("2 runs of 1h2m on 9 spot pools in 9 zones, 4 days, each wanted within 6h")
    assert [line.split()[0] for line in lines[3:8]] == ["spot-one", "spot-any", "fallback", "deadline", "on-demand"]
    assert "a run's time, in the mean: Training" in printed
    assert "spot-any: 2 of 2 runs done" in told


def test_json_and_picture_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "found.svg"
    command.main([*SMALL, "--policy", "on-demand", "--policy", "spot-any", "--json", "--plot", str(picture)])
    policies = json.loads(capsys.readouterr().out)["policies"]
    assert [one["policy"] for one in policies] == ["on-demand", "spot-any"]
    assert policies[0]["finished"] == 2
    assert policies[0]["saved"] < policies[1]["saved"]
    drawn = ElementTree.parse(picture).getroot()
    words = " ".join(text.text or "" for text in drawn.iter("{http://www.w3.org/2000/svg}text"))
    assert f"on-demand: {policies[0]['cost']:.2f}" in words
    assert "deadline" in words
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_in_several_processes_the_answer_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*SMALL, "--policy", "spot-any", "--policy", "on-demand", "--json"]
    command.main(asked)
    alone = capsys.readouterr().out
    command.main([*asked, "--jobs", "2"])
    assert capsys.readouterr().out == alone


def test_a_manifest_runs_as_configured(manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-f", str(manifests), "--place", "cheap=west-2a,west-2b", "--generate", "4", "--runs", "2", "--work", "1h"]
    command.main([*asked, "--jobs", "1", "--json"])
    policies = json.loads(capsys.readouterr().out)["policies"]
    assert [one["policy"] for one in policies] == ["as-configured", "spot-one", "spot-any", "fallback", "on-demand"]
    assert policies[-1]["on_demand_cost"] == pytest.approx(2 * 1.2 * (3600 + 90 + 20) / 3600)
    scenario = parse(asked).scenario
    assert scenario.steps == 1200
    assert scenario.effort.step == 3.0
    assert scenario.zones == {"cheap": ("west-2a", "west-2b")}


def test_the_examples_of_the_repository_can_be_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3] / "examples"
    files = ["-f", str(root / "pools.yaml"), "-f", str(root / "timber.yaml")]
    spot = [name for name, pool in parse_pools(files).items() if pool.capacity_type == "Spot"]
    places = [option for name in spot for option in ("--place", f"{name}=west-2a")]
    command.main([*files, *places, "--generate", "3", "--runs", "1", "--seconds-per-step", "2", "--policy",
                  "as-configured", "--jobs", "1"])  # fmt: skip
    assert "as-configured: as the manifest says" in capsys.readouterr().out


def parse_pools(files: list[str]) -> dict[str, object]:
    from lorafinetune.simulate.manifests import read as read_manifests

    return dict(read_manifests([Path(one) for one in files[1::2]]).pools)


def test_traces_can_be_kept_and_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "traces.json"
    asked = ["--runs", "1", "--work", "1h", "--policy", "spot-any", "--json", "--jobs", "1"]
    command.main(["--generate", "3", "--seed", "5", "--save-traces", str(kept), *asked])
    made = capsys.readouterr().out
    command.main(["--traces", str(kept), *asked])
    assert capsys.readouterr().out == made
    assert len(read(kept).zones) == 9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--traces", "a.json", "--generate", "3"], "--traces and --generate: give one of them"),
        (["--zones", "moon-1a"], "--zones: the traces have no zone 'moon-1a': choose from east-1a,"),
        (["--policy", "best"], "--policy best: there is none of that name: choose from as-configured,"),
        (["--policy", "as-configured"], "name the LoRAFineTune's manifest with -f"),
        (["--policy", "deadline"], "--policy deadline: say --deadline"),
        (["--deadline", "8h", "--work", "8h"], "--deadline: 28800 s are less than the 28910 s that a run takes"),
        (["--generate", "0.2", "--work", "8h"], "are too short for one run"),
        (["--seconds-per-step", "2"], "--seconds-per-step: say --steps too"),
        (["--work", "2h", "--seconds-per-step", "2"], "--work and --seconds-per-step: give one of them"),
        (["-f", "nowhere.yaml"], "-f nowhere.yaml: cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_option_and_the_fix(options: list[str], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        parse(options)


def test_pools_without_a_zone_are_asked_for_it(manifests: Path) -> None:
    with pytest.raises(OptionError, match=r"GPUPool cheap: .* add --place cheap=ZONE"):
        parse(["-f", str(manifests)])
    with pytest.raises(OptionError, match="the traces have no zone 'moon'"):
        parse(["-f", str(manifests), "--place", "cheap=moon"])
    with pytest.raises(OptionError, match="the pools are cheap, dear"):
        parse(["-f", str(manifests), "--place", "other=west-2a"])


def test_a_manifest_that_names_an_unknown_pool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    with pytest.raises(OptionError, match=r"spec.placement names pool 'cheap': add its GPUPool to -f"):
        parse(["-f", str(path)])
    path.write_text(RUN.replace("steps: 1200", "steps: -1"))
    with pytest.raises(OptionError, match=r"LoRAFineTune timber: spec.training.steps"):
        parse(["-f", str(path)])


@pytest.mark.parametrize(("at_limit", "published"), [("Publish", 2), ("Fail", 0)])
def test_a_limit_that_ended_runs_is_named(
    at_limit: str, published: int, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = f'limits: {{maxCost: "0.25", atLimit: {at_limit}}}'
    manifests.write_text(f"{manifests.read_text().rstrip()}\n  {limits}\n")
    options = ["-f", str(manifests), "--place", "cheap=west-2a", "--policy", "as-configured", *SMALL]
    command.main([*options, "--json"])
    (found,) = json.loads(capsys.readouterr().out)["policies"]
    assert (found["finished"], found["failed_by"]) == (0, {"MaxCostReached": 2})
    assert found["published"] == published
    command.main(options)
    words = f"ended before the last step: MaxCostReached 2; {published} of them published the LoRA of what was done"
    assert words in capsys.readouterr().out


def test_a_bad_line_ends_with_two_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--policy", "best"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("lorafinetune simulate: --policy best:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--work", "0s"], "--work: '0s' is no time: write one such as 90s, 20m or 1h30m"),
        (["--deadline", "0s"], "--deadline: '0s' is no time"),
        (["--deadline", "-1h"], "--deadline: expected one argument (what begins with - is none"),
        (["--spot-price", "0.00"], "--spot-price: '0.00' is no price above zero"),
        (["--spot-price", "1e-9"], "--spot-price: '1e-9' is no price above zero"),
        (["--runs", "0"], "--runs: '0' is not a whole number from 1 to 10000"),
        (["--wrok", "1h"], "unrecognized arguments: --wrok 1h"),
        (["--plot", "/no/such/folder/found.svg"], "--plot /no/such/folder/found.svg: cannot be written there"),
        (["--plot", "found.png"], "--plot found.png: the picture is an SVG: name a file that ends in .svg"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_before_anything_is_replayed(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*SMALL, *options])
    assert ended.value.code == 2
    printed, told = capsys.readouterr()
    assert (printed, told.count("\n")) == ("", 1)
    assert told.startswith(f"lorafinetune simulate: {said}")


def test_a_picture_that_fails_does_not_take_the_table_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    run = command.run

    def last(*asked: Any) -> Any:
        room.rmdir()
        return run(*asked)

    monkeypatch.setattr(command, "run", last)
    with pytest.raises(SystemExit):
        command.main([*SMALL, "--policy", "spot-any", "--plot", str(room / "found.svg")])
    printed, told = capsys.readouterr()
    assert "POLICY" in printed
    assert "name a file that can be written" in told


def test_only_zones_that_a_pool_uses_are_counted(manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-f", str(manifests), "--place", "cheap=west-2a,west-2b", "--generate", "4", "--runs", "1", "--work", "1h"]
    command.main([*asked, "--jobs", "1", "--policy", "on-demand"])
    printed = capsys.readouterr().out
    assert printed.startswith("1 run of 1h2m on 1 spot pool in 2 zones, 4 days\n")
    assert re.search(r"on-demand +1[.]\d\d +0% ", printed), "what is paid on demand beside no saving is 0, not -0"


def test_the_command_that_people_type_is_this_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    begin = metadata.EntryPoint("lorafinetune", project["scripts"]["lorafinetune"], "console_scripts").load()
    monkeypatch.setattr(sys, "argv", ["lorafinetune", "simulate", "--policy", "best"])
    with pytest.raises(SystemExit):
        begin()
    assert "--policy best" in capsys.readouterr().err


def test_it_needs_no_library_of_a_cluster() -> None:
    code = (
        "import sys\n"
        "for name in ('kopf', 'kubernetes', 'boto3', 'aiohttp', 'yaml', 'cryptography'): sys.modules[name] = None\n"
        "sys.argv[1:] = ['simulate', '--generate', '2', '--runs', '1', '--work', '10m', '--policy', 'spot-any']\n"
        "from lorafinetune.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "spot-any" in done.stdout


def test_prices_of_the_traces_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "priced.json"
    body = body_of(traces(one=[5000], two=[5000])) | {"prices": {"one": {"spot": "0.5", "onDemand": "2"}}}
    path.write_text(json.dumps(body))
    pools = parse(["--traces", str(path), "--work", "1h", "--runs", "1"]).scenario.pools
    assert {name: pool.price_per_hour for name, pool in pools.items()} == {
        "one": "0.5", "two": "0.92", "on-demand": "2"
    }  # fmt: skip
