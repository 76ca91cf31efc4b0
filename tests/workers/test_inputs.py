"""The cache of artifacts: bounded in bytes, least recently used first."""

from __future__ import annotations

from creditgrid.workers.inputs import ArtifactCache


def filled(limit: int, **sizes: int) -> ArtifactCache[str]:
    cache = ArtifactCache[str](limit)
    for key, size in sizes.items():
        cache.put(key, key.upper(), size)
    return cache


def held(cache: ArtifactCache[str]) -> str:
    return "".join(key for key in "abc" if cache.get(key) is not None)


def test_values_come_back_until_they_are_dropped() -> None:
    cache = filled(100, a=1, b=2, c=3)
    assert [cache.get(key) for key in "abcd"] == ["A", "B", "C", None]
    cache.drop(["b", "d"])
    assert held(cache) == "ac"
    cache.clear()
    assert held(cache) == ""


def test_the_least_recently_used_is_dropped_when_the_bytes_are_too_many() -> None:
    cache = filled(10, a=4, b=4)
    cache.get("a")
    cache.put("c", "C", 4)
    assert held(cache) == "ac"


def test_the_newest_stays_whatever_its_size() -> None:
    cache = filled(10, a=4, b=40)
    assert held(cache) == "b"
    cache.put("c", "C", 1)
    assert held(cache) == "c"


def test_what_is_replaced_or_dropped_takes_no_room() -> None:
    cache = filled(10, a=8)
    cache.put("a", "A", 2)
    cache.put("b", "B", 8)
    assert held(cache) == "ab"
    cache.drop(["b"])
    cache.put("c", "C", 8)
    assert held(cache) == "ac"
    cache.clear()
    cache.put("b", "B", 10)
    assert held(cache) == "b"
