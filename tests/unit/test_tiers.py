"""`make test` leaves no test out, and runs none twice."""

from __future__ import annotations

from tests.__main__ import APART, HERE, SERVERS, TRAINERS, commands


def test_every_test_file_is_in_one_of_the_two() -> None:
    trainers, servers = ([HERE / place for place in places] for places in (TRAINERS, SERVERS))
    apart = [HERE / "integration" / room for room in APART]
    for path in HERE.rglob("test_*.py"):
        first = any(path.is_relative_to(place) for place in trainers)
        second = any(path.is_relative_to(place) for place in servers) and not any(
            path.is_relative_to(place) for place in apart
        )
        assert first != second, path
    assert all(place.is_dir() for place in (*trainers, *servers))


def test_what_one_ignores_the_other_plays() -> None:
    trainers, servers = commands()
    ignored = {argument.removeprefix("--ignore=") for argument in servers if argument.startswith("--ignore=")}
    assert ignored == {str(HERE / "integration" / room) for room in APART}
    assert ignored <= set(trainers)
