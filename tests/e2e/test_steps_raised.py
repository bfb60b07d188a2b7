"""More steps for a run that is nearly done: the attempt ends well at the old number, another one trains the rest."""

from __future__ import annotations

import json
from typing import Any

from examples.stage import Stage

Object = dict[str, Any]

FEW, MORE = 30, 40


def test_steps_raised_too_late_for_an_attempt_are_the_next_ones(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "longer", training={"steps": FEW}))
    stage.wait("it trains", lambda: (stage.status(home, "longer").get("step") or 0) >= 3, 240.0, 0.1)
    more = json.dumps({"spec": {"training": {"steps": MORE}}})
    stage.cluster.kubectl("patch", "lft", "longer", "-n", home, "--type=merge", "-p", more)
    done: Object = stage.wait(
        "it has all steps", lambda: (said := stage.status(home, "longer")).get("phase") == "Succeeded" and said, 240.0
    )
    assert (done["step"], done["steps"]) == (MORE, MORE)
    told = [(one["number"], one["cause"], one.get("fromStep"), one["toStep"]) for one in done["attempts"]]
    assert told == [(1, "Finished", 0, FEW), (2, "Finished", FEW, MORE)]
    events = stage.cluster.get("events.events.k8s.io", "-n", home)["items"]
    warned = [one["note"] for one in events if one.get("type") == "Warning" and one["regarding"]["name"] == "longer"]
    assert not [words for words in warned if "artifact" in words], "an edit is nobody's failure"
