import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime import cache as module
from onnxdecomp.runtime.cache import Cache, default_cache_folder
from onnxdecomp.runtime.machine import fingerprint

KEY = {"layer": "conv1", "ranks": (16, 8)}
VALUE = {"ms": 1.25, "notes": ["a", None, True]}
ARRAYS = {"left/file": np.arange(6.0).reshape(2, 3), "": np.zeros((0, 4), np.int8), "h": np.float16([1.5])}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "not there yet")


def only_file(cache):
    (path,) = (path for path in cache.folder.rglob("*") if path.is_file())
    return path


def assert_same_arrays(found, expected):
    assert [(n, a.dtype, a.tolist()) for n, a in found.items()] == [
        (n, a.dtype, a.tolist()) for n, a in expected.items()
    ]


def put_both(cache):
    cache.put("latency", KEY, VALUE)
    cache.put_arrays("latency", KEY, ARRAYS)


def get_both(cache, key=KEY):
    return cache.get("latency", key), cache.get_arrays("latency", key)


def test_what_was_put_is_found_by_another_object(cache):
    put_both(cache)
    value, arrays = get_both(Cache(cache.folder))
    assert value == VALUE
    assert_same_arrays(arrays, ARRAYS)


@pytest.mark.parametrize(
    ("key", "same"),
    [
        ({"ranks": [16, 8], "layer": "conv1"}, True),
        ({"layer": "conv1", "ranks": (8, 16)}, False),
        ({"layer": "conv1", "ranks": (16.0, 8.0)}, False),
        ({"layer": "conv1"}, False),
        (("conv1", 16, 8), False),
    ],
)
def test_a_key_is_its_content_whatever_its_order(cache, key, same):
    put_both(cache)
    assert [found is not None for found in get_both(cache, key)] == [same, same]


def test_kinds_do_not_mix(cache):
    put_both(cache)
    assert cache.get("analysis", KEY) is None


def test_the_last_value_stays(cache):
    cache.put("latency", KEY, VALUE)
    cache.put("latency", KEY, {"ms": 2})
    assert cache.get("latency", KEY) == {"ms": 2}


def test_without_a_folder_nothing_is_kept_and_nothing_fails():
    off = Cache(None)
    put_both(off)
    off.prune(0)
    assert (get_both(off), off.settle()) == ((None, None), [])


@pytest.mark.parametrize("key", [{"x": float("nan")}, {"x": float("inf")}, {"x": np.float32(1)}])
def test_a_key_that_is_no_plain_value_is_refused(cache, key):
    with pytest.raises((TypeError, ValueError)):
        cache.put("latency", key, VALUE)


@pytest.mark.parametrize("array", [np.array([{}]), np.zeros(2, "f4,i4"), np.array(["2020"], "M8[D]")])
def test_arrays_that_need_pickle_or_lose_their_type_are_refused(cache, array):
    with pytest.raises(TypeError, match="a: elements of type"):
        cache.put_arrays("weights", KEY, {"a": array})


def test_two_keys_of_one_hash_are_told_apart(cache, monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda text: "same")
    put_both(cache)
    assert get_both(cache, {"layer": "conv2"}) == (None, None)
    assert cache.get("latency", KEY) == VALUE


@pytest.mark.parametrize("put", [Cache.put, Cache.put_arrays])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_off_is_removed_and_made_anew(tmp_path_factory, put, share):
    cache = Cache(tmp_path_factory.mktemp("cache"), machine={})
    get, value = (cache.get, VALUE) if put is Cache.put else (cache.get_arrays, ARRAYS)
    put(cache, "latency", KEY, value)
    path = only_file(cache)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert get("latency", KEY) is None
    assert not path.exists()
    put(cache, "latency", KEY, value)
    assert get("latency", KEY).keys() == value.keys()


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b'{"machine": 3}', b"\x80\x04K\x01.", b"some text", b"\xff" * 500]
)
def test_a_file_of_something_else_is_not_served_and_made_anew(cache, content):
    put_both(cache)
    for path in [path for path in cache.folder.rglob("*") if path.is_file()]:
        path.write_bytes(content)
    assert get_both(cache) == (None, None)
    put_both(cache)
    assert None not in get_both(cache)
    assert cache.settle() == []


def test_pickled_arrays_are_not_read(cache):
    cache.put_arrays("weights", KEY, ARRAYS)
    np.savez(only_file(cache), header=np.array([{"machine": "?"}], object))
    assert cache.get_arrays("weights", KEY) is None


def test_a_file_of_another_format_is_ignored_even_in_place_of_ours(cache, monkeypatch):
    put_both(cache)
    old = cache._machine
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    newer = Cache(cache.folder)
    monkeypatch.setattr(module, "_hash", lambda text: "same")
    put_both(cache)
    assert get_both(newer) == (None, None)
    assert newer._machine != old


@pytest.mark.parametrize("other", [{"cpu": "another"}, {"onnxruntime": "1.0"}, {"onnxdecomp": "0"}], ids=str)
def test_values_of_another_machine_or_version_are_ignored_and_told_of_once(cache, other):
    there = Cache(cache.folder, {**fingerprint(), **other})
    put_both(there)
    there.put("latency", ("not asked for",), VALUE)
    assert get_both(cache) == get_both(cache) == (None, None)
    (note,) = cache.settle()
    assert "Cache of another machine, or of another version" in note
    assert "2 entries ignored, measured anew" in note
    assert cache.settle() == []
    put_both(cache)
    assert None not in get_both(cache)
    assert (cache.settle(), there.settle()) == ([], [])


def test_what_nobody_made_is_not_told_of(cache):
    put_both(Cache(cache.folder, {**fingerprint(), "cpu": "another"}))
    assert cache.get("latency", ("new",)) is None
    assert cache.settle() == []


@pytest.mark.parametrize("name", ["cpu", "instruction_set", "onnxruntime", "onnxdecomp", "numpy"])
def test_the_fingerprint_names_processor_and_versions(name):
    assert fingerprint()[name]


def aged(cache, n_values=4):
    """Put values, the first of them longest ago, and return their files."""
    for number in range(n_values):
        cache.put("latency", (number,), VALUE)
    files = [cache._path("latency", (number,), "json") for number in range(n_values)]
    for number, path in enumerate(files):
        os.utime(path, (number, number))
    return files


def test_pruning_removes_what_was_not_used_for_longest(cache):
    files = aged(cache)
    cache.get("latency", (0,))  # used just now, although it is the oldest
    cache.prune(2 * module.BLOCK_BYTES)
    assert [path.exists() for path in files] == [True, False, False, True]


def test_a_use_that_wrote_something_ends_with_the_folder_within_its_limit(cache, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 2 * module.BLOCK_BYTES)
    files = aged(cache)
    cache.settle()
    assert [path.exists() for path in files] == [False, False, True, True]


def test_a_use_that_wrote_nothing_does_not_look_at_the_folder(cache, monkeypatch):
    put_both(cache)
    cache.settle()
    monkeypatch.setattr(Cache, "prune", None)
    get_both(cache)
    assert cache.settle() == []


@pytest.mark.parametrize("name", ["a/b/model.onnx", "a/b/c.json", f"{'0' * 40}/b/notes.json", "x.npz"])
def test_pruning_leaves_what_is_not_ours(cache, name):
    put_both(cache)
    theirs = cache.folder / name
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.touch()
    cache.prune(0)
    assert theirs.exists()
    assert get_both(cache) == (None, None)


def test_pruning_a_cache_that_is_small_enough_removes_nothing(cache):
    put_both(cache)
    cache.prune(10**6)
    assert None not in get_both(cache)


def test_pruning_removes_what_a_dead_process_left_half_written(cache):
    put_both(cache)
    folder = cache._path("latency", KEY, "json").parent
    dead, alive = (folder / f"{digit * 40}.tmp" for digit in "ab")
    for path in (dead, alive):
        path.touch()
    os.utime(dead, (0, 0))
    cache.prune(10**6)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_folder_that_cannot_be_written_is_a_problem_and_no_error(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file")
    put_both(cache)
    cache.prune(0)
    assert get_both(cache) == (None, None)
    (note,) = cache.settle()
    assert "Not all could be kept in the cache folder" in note


def test_a_folder_that_may_only_be_read_serves_and_is_told_of(cache, monkeypatch):
    put_both(cache)
    cache.settle()

    def read_only(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "mkdir", read_only)
    monkeypatch.setattr(module.os, "utime", read_only)
    cache.put("latency", ("new",), VALUE)
    assert None not in get_both(cache)
    assert cache.settle() == [
        f"Not all could be kept in the cache folder '{cache.folder}': Permission denied."
    ]


def test_a_folder_in_the_place_of_a_file_is_told_of(cache):
    cache._path("latency", KEY, "json").mkdir(parents=True)
    cache._path("latency", KEY, "npz").mkdir()
    put_both(cache)
    assert get_both(cache) == (None, None)
    assert "Not all could be kept" in cache.settle()[0]


def test_a_failed_write_leaves_the_old_value_and_no_rubbish(cache, monkeypatch):
    cache.put_arrays("weights", KEY, ARRAYS)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "savez", full_disk)
    cache.put_arrays("weights", KEY, {"h": np.zeros(3)})
    assert_same_arrays(cache.get_arrays("weights", KEY), ARRAYS)
    assert only_file(cache).suffix == ".npz"
    assert cache.settle()[0].endswith("No space left on device.")


WRITER = """
import sys
from pathlib import Path
import numpy as np
from onnxdecomp.runtime.cache import Cache
cache, own = Cache(Path(sys.argv[1])), int(sys.argv[2])
for _ in range(50):
    cache.put_arrays("weights", ("shared",), {"x": np.full(20000, own)})
    values = cache.get_arrays("weights", ("shared",))["x"]
    assert len(values) == 20000 and len(set(values.tolist())) == 1, values
"""


def test_processes_that_write_the_same_value_never_see_half_of_it(cache):
    command = [sys.executable, "-c", WRITER, str(cache.folder)]
    writers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(2)]
    complaints = [writer.communicate()[1] for writer in writers]
    assert complaints == ["", ""]
    assert only_file(cache).suffix == ".npz"


def test_the_default_folder_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path / "conversions"
