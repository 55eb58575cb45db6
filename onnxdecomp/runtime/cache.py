"""Keep on disk what was expensive to find out: latencies, analyses, evaluations.

    <folder>/<machine>/<kind>/<key>.json or .npz

The names of folders and files are hashes; each file holds what was hashed as well and is served only when
that equals what is asked for. A file that is anything else is as good as none. Several processes may use one
folder: a file appears complete or not at all, and the last one written stays. The folder grows to `MAX_BYTES`
and a single conversion more; then what was not used for longest goes, whatever machine made it.
"""

import hashlib
import json
import os
import re
import secrets
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.machine import fingerprint

Key = Mapping[str, object] | tuple[object, ...]
Arrays = Mapping[str, NDArray[np.generic]]

FORMAT = 1
"""Version of what stands in the files; a file of another version is not read."""

MAX_BYTES = 2**30
"""What the files of all machines in a folder may take together."""

BLOCK_BYTES = 4096
"""A file takes a multiple of this on disk."""

STALE_SECONDS = 3600
"""A file that is still half written after this time was left behind by a process that died."""

PLAIN_KINDS = "biufcSU"
"""Element types that an .npz keeps as they are: no Python objects, no types numpy has no name for."""

_OURS = re.compile(r"[0-9a-f]{40}")
"""Names of machines' folders. Others in the same folder are not ours to remove."""

_BROKEN = (
    EOFError, ValueError, LookupError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip
"""What json and numpy raise for a file that was cut off or overwritten."""

Value = TypeVar("Value")


def cache_folder() -> Path:
    """Return where onnxdecomp keeps its files: ``$ONNXDECOMP_CACHE``, or in the user's cache folder.

    The folder may not exist yet.
    """
    chosen = os.environ.get("ONNXDECOMP_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxdecomp"


def default_cache_folder() -> Path:
    """Return where conversions keep what they found out; it may not exist yet."""
    return cache_folder() / "conversions"


class Cache:
    """Values by kind and key, valid on one machine with one set of versions.

    A cache must never stop a conversion: what cannot be read is made again, what cannot be written is not
    kept, and `settle` says why.

    Args:
        folder: Where the files lie; made when the first one is written. None switches the cache off.
        machine: What every value depends on beside its key; `fingerprint` when None.
    """

    def __init__(self, folder: Path | None, machine: Mapping[str, object] | None = None) -> None:
        self.folder = folder
        self._problem = ""
        self._foreign: set[Path] = set()
        self._seen: list[Path] | None = None
        self._wrote = False
        self._machine = canonical({"format": FORMAT, **(fingerprint() if machine is None else machine)})

    def get(self, kind: str, key: Key) -> dict[str, Any] | None:
        """Return the value put under a key, or None when there is none that is whole."""
        return self._read(self._path(kind, key, "json"), key, _read_json)

    def put(self, kind: str, key: Key, value: Mapping[str, object]) -> None:
        """Keep a value that JSON can express.

        Raises:
            TypeError: The key or the value cannot be written as JSON.
            ValueError: The key holds a number that is not finite.
        """
        content = json.dumps({**self._header(key), "value": value}).encode()
        self._write(self._path(kind, key, "json"), lambda file: file.write(content))

    def get_arrays(self, kind: str, key: Key) -> dict[str, NDArray[Any]] | None:
        """Return the arrays put under a key, or None when there are none that are whole."""
        return self._read(self._path(kind, key, "npz"), key, _read_arrays)

    def put_arrays(self, kind: str, key: Key, arrays: Arrays) -> None:
        """Keep arrays by name.

        Raises:
            TypeError: An array holds Python objects or elements of a type numpy does not know by itself.
        """
        for name, array in arrays.items():
            if array.dtype.kind not in PLAIN_KINDS:
                raise TypeError(f"{name}: elements of type {array.dtype} cannot be kept")
        header = json.dumps({**self._header(key), "names": list(arrays)}).encode()
        members = {f"array{number}": array for number, array in enumerate(arrays.values())}
        whole = {"header": np.frombuffer(header, np.uint8), **members}
        self._write(self._path(kind, key, "npz"), lambda file: np.savez(file, **whole))  # type: ignore[arg-type]

    def settle(self) -> list[str]:
        """End a use: prune the folder if it grew, and return what the user should know; then start anew.

        That is why values could not be kept, and how many lie there that another machine or other versions
        made, so that they were not served.
        """
        if self._wrote:
            self.prune(MAX_BYTES)
        notes = [self._problem] if self._problem else []
        if self._foreign:
            notes.append(
                f"Cache of another machine, or of another version of onnxruntime or onnxdecomp, in "
                f"'{self.folder}': {len(self._foreign)} entries ignored, measured anew."
            )
        self._problem, self._wrote = "", False
        self._foreign.clear()
        self._seen = None
        return notes

    def prune(self, max_bytes: int) -> None:
        """Remove what was not used for longest, of all machines, until `max_bytes` are enough."""
        if self.folder is None:
            return
        now = time.time()
        entries = []
        for path in self._files():
            try:
                stat = path.stat()
            except OSError:  # another process was faster
                continue
            if path.suffix != ".tmp":
                size_bytes = -(-stat.st_size // BLOCK_BYTES) * BLOCK_BYTES
                entries.append((stat.st_mtime_ns, size_bytes, path))
            elif now - stat.st_mtime > STALE_SECONDS:
                _remove(path)
        left = sum(size_bytes for _, size_bytes, _ in entries)
        for _, size_bytes, path in sorted(entries):
            if left <= max_bytes:
                break
            _remove(path)
            left -= size_bytes

    def _files(self) -> Iterator[Path]:
        """Yield the files of all machines; nothing else that may lie in the folder."""
        for machine in self._machines():
            for path in machine.glob("*/*"):
                if _OURS.match(path.name) and path.suffix in (".json", ".npz", ".tmp"):
                    yield path

    def _machines(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if _OURS.fullmatch(path.name)] if self.folder else []

    def _others(self) -> list[Path]:
        """Return the folders of other machines, listed once."""
        if self._seen is None:
            self._seen = [path for path in self._machines() if path.name != _hash(self._machine)]
        return self._seen

    def _path(self, kind: str, key: Key, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / _hash(self._machine) / kind / f"{_hash(canonical(key))}.{suffix}"

    def _header(self, key: Key) -> dict[str, str]:
        return {"machine": self._machine, "key": canonical(key)}

    def _read(
        self, path: Path | None, key: Key, read: Callable[[Path, dict[str, str]], Value | None]
    ) -> Value | None:
        if path is None:
            return None
        try:
            value = read(path, self._header(key))
        except OSError:  # usually it does not exist
            if any(Path(other, *path.parts[-2:]).exists() for other in self._others()):
                self._foreign.add(path)
            return None
        except _BROKEN:
            _remove(path)
            return None
        with suppress(OSError):  # a folder that may only be read serves as well
            os.utime(path)  # tells `prune` what is in use
        return value

    def _write(self, path: Path | None, write: Callable[[IO[bytes]], object]) -> None:
        if path is None:
            return
        fresh = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("xb") as file:
                write(file)
            fresh.replace(path)
            self._wrote = True
        except OSError as error:
            self._problem = (
                f"Not all could be kept in the cache folder '{self.folder}': {error.strerror or error}."
            )
        finally:
            _remove(fresh)


def canonical(key: Key) -> str:
    """Return a key as text: the same text for the same content, whatever the order of a mapping.

    >>> canonical({"ranks": (8, 4), "method": "svd"})
    '{"method":"svd","ranks":[8,4]}'

    Raises:
        TypeError: The key holds something else than plain values.
        ValueError: The key holds a number that is not finite.
    """
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_json(path: Path, header: dict[str, str]) -> dict[str, Any] | None:
    stored = json.loads(path.read_bytes())
    if not _holds(stored, header):
        return None
    value: dict[str, Any] = stored["value"]
    return value


def _read_arrays(path: Path, header: dict[str, str]) -> dict[str, NDArray[Any]] | None:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        own = json.loads(stored["header"].tobytes())
        if not _holds(own, header):
            return None
        return {name: stored[f"array{number}"] for number, name in enumerate(own["names"])}


def _holds(stored: dict[str, Any], header: dict[str, str]) -> bool:
    return all(stored[name] == value for name, value in header.items())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _remove(path: Path) -> None:
    with suppress(OSError):  # it is gone already, in use elsewhere, or not ours to remove
        path.unlink()
