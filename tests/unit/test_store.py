"""The store against a model of etcd's history: whatever the order of lists, events and own writes, it never lies."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lorafinetune.kube.store import Change, Store

NAMES = ("a", "b", "c")


def pod(name: str, version: int, uid: str = "u", owner: str = "run") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version), "owner": owner}}


def by_owner(thing: dict[str, Any]) -> list[str]:
    return [thing["metadata"]["owner"]]


def test_replace_tells_new_changed_and_vanished() -> None:
    store = Store()
    store.replace([pod("a", 1), pod("b", 2), pod("c", 3)], "5")
    changes = store.replace([pod("a", 1), pod("b", 7), pod("d", 8)], "9")
    assert {(c.key[1], c.old is not None, c.new is not None) for c in changes} == {
        ("b", True, True),
        ("c", True, False),
        ("d", False, True),
    }
    assert store.get("c", "n") is None
    assert len(store) == 3


def test_replace_tells_of_one_made_again_under_the_same_name() -> None:
    store = Store()
    store.replace([pod("a", 1, uid="first")], "1")
    (change,) = store.replace([pod("a", 4, uid="second")], "5")
    assert change.old is not None
    assert change.new is not None
    assert (change.old["metadata"]["uid"], change.new["metadata"]["uid"]) == ("first", "second")


def test_index_follows_changes_and_keeps_nothing_empty() -> None:
    store = Store(by_owner)
    store.take("ADDED", pod("a", 1, owner="x"))
    store.take("ADDED", pod("b", 2, owner="x"))
    assert len(store.indexed("x")) == 2
    store.take("MODIFIED", pod("a", 3, owner="y"))
    store.take("DELETED", pod("b", 4, owner="x"))
    assert store.indexed("x") == []
    assert [p["metadata"]["name"] for p in store.indexed("y")] == ["a"]
    assert set(store._by_value) == {"y"}


def test_bookmark_changes_nothing_but_the_version() -> None:
    store = Store()
    assert store.take("BOOKMARK", {"metadata": {"resourceVersion": "50"}}) is None
    assert store.learn(pod("a", 40)) is None  # the watch is past it: it was deleted since


def test_old_news_changes_nothing() -> None:
    store = Store()
    store.take("ADDED", pod("a", 5))
    assert store.take("MODIFIED", pod("a", 4)) is None
    assert store.take("ADDED", pod("a", 5)) is None
    assert store.replace([pod("a", 4)], "4") == []
    assert store.get("a", "n") == pod("a", 5)


def test_learned_object_survives_a_list_that_is_older() -> None:
    store = Store()
    store.learn(pod("a", 10))
    assert store.replace([], "8") == []
    assert store.get("a", "n") is not None
    assert [c.key for c in store.replace([], "11")] == [("n", "a")]


def test_deletion_of_the_predecessor_leaves_the_learned_successor() -> None:
    store = Store()
    store.take("ADDED", pod("a", 1, uid="old"))
    store.learn(pod("a", 9, uid="new"))
    assert store.take("DELETED", pod("a", 7, uid="old")) is None
    found = store.get("a", "n")
    assert found is not None
    assert found["metadata"]["uid"] == "new"


class History(RuleBasedStateMachine):
    """An API server (a log of versions) and a store that hears of it late, in pieces, and learns own writes early."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 1
        self.now: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[int, str, dict[str, Any]]] = []
        self.store = Store(by_owner)
        self.heard = 1
        self.learned: dict[str, int] = {}
        """Per name, the version of our own latest write that the store was told of."""
        self.mirror: dict[tuple[str, str], dict[str, Any]] = {}
        """What somebody who only hears of changes believes."""

    def _tell(self, *changes: Change | None) -> None:
        for change in changes:
            if change is not None:
                assert self.mirror.get(change.key) == change.old
                if change.new is None:
                    del self.mirror[change.key]
                else:
                    self.mirror[change.key] = change.new

    def _write(self, name: str) -> dict[str, Any]:
        self.version += 1
        old = self.now.get(name)
        uid = old["metadata"]["uid"] if old else f"uid{self.version}"
        thing = pod(name, self.version, uid, owner=uid)
        self.now[name] = thing
        self.log.append((self.version, "MODIFIED" if old else "ADDED", thing))
        return thing

    @rule(name=st.sampled_from(NAMES))
    def others_write(self, name: str) -> None:
        self._write(name)

    @rule(name=st.sampled_from(NAMES), behind=st.integers(0, 3))
    def we_write(self, name: str, behind: int) -> None:
        thing = self._write(name)
        for _ in range(behind):  # the watch may be quicker than the answer
            self.hear()
        self._tell(self.store.learn(thing))
        self.learned[name] = int(thing["metadata"]["resourceVersion"])

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if old := self.now.pop(name, None):
            self.version += 1
            self.log.append((self.version, "DELETED", pod(name, self.version, old["metadata"]["uid"])))

    @rule()
    def hear(self) -> None:
        for version, kind, thing in self.log:
            if version > self.heard:
                self._tell(self.store.take(kind, thing))
                self.heard = version
                return

    @rule()
    def bookmark(self) -> None:
        while self.heard < self.version:
            self.hear()
        self._tell(self.store.take("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))

    @rule(learn=st.sampled_from((None, *NAMES)))
    def relist(self, learn: str | None) -> None:
        listed, version = list(self.now.values()), self.version
        if learn is not None:  # a write of our own while the list is on its way
            self.we_write(learn, 0)
        self._tell(*self.store.replace(listed, str(version)))
        self.heard = version

    @invariant()
    def never_older_than_our_own_write(self) -> None:
        for name, version in self.learned.items():
            found = self.store.get(name, "n")
            if found is None:
                assert name not in self.now or self.log_has_deletion_after(name, version)
            else:
                assert int(found["metadata"]["resourceVersion"]) >= version or self.log_has_deletion_after(
                    name, version
                )

    def log_has_deletion_after(self, name: str, version: int) -> bool:
        return any(v > version and k == "DELETED" and t["metadata"]["name"] == name for v, k, t in self.log)

    @invariant()
    def right_once_everything_was_heard(self) -> None:
        if self.heard == self.version:
            assert {p["metadata"]["name"]: p for p in self.store} == self.now
            assert {o: [p["metadata"]["name"] for p in self.store.indexed(o)] for o in self.store._by_value} == {
                p["metadata"]["owner"]: [name] for name, p in self.now.items()
            }

    @invariant()
    def told_everything(self) -> None:
        assert self.mirror == self.store._objects


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
