"""`pack` and `unpack`: a model and its data files in one file, coded without loss, and back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph import container
from onnxdecomp.graph.container import Packed, PackedFile
from onnxdecomp.graph.external import leaves_folder
from onnxdecomp.graph.io import load
from onnxdecomp.report.outcome import BeforeAfter


@dataclass(frozen=True)
class Packing:
    """What `pack` or `unpack` did.

    Args:
        files: The files of the model, its own name first.
        size_bytes: Of all files, read and written.
    """

    files: tuple[str, ...]
    size_bytes: BeforeAfter


def pack(source: str | Path, output: str | Path) -> Packing:
    """Write a model and its data files to one packed file; `unpack` gives back the same bytes.

    Args:
        source: Path of the model.
        output: Path to write.

    Raises:
        ModelError: The model cannot be read, or the output cannot be written.
        UsageError: The output is a file that the model is read from.
    """
    model, out = load(source), Path(output)
    read = {Path(source).resolve(), *model.data_files}
    if out.resolve() in read:
        raise UsageError(f"'{out}' is read from: give the output another name.")
    with _staged(out) as folder:
        staged = folder / out.name
        with staged.open("xb") as sink:
            size_bytes = container.pack(model, sink)
        staged.replace(out)
    names = (Path(source).name, *sorted(path.name for path in model.data_files))
    return Packing(names, BeforeAfter(model.size_bytes, size_bytes))


def unpack(source: str | Path, output: str | Path) -> Packing:
    """Write the files of a packed model, all of them or none, the data files beside the model.

    Args:
        source: Path of the packed file.
        output: Path of the model to write; its data files get the names they had.

    Raises:
        ModelError: The packed file is no such file, of a newer version, cut off or altered, or a file
            cannot be written, or a data file would take the place of another.
        UsageError: The output is the packed file itself.
    """
    path, out = Path(source), Path(output)
    if path.resolve() == out.resolve():
        raise UsageError(f"'{out}' is the packed file itself: give the output another name.")
    packed = Packed(path)
    with _staged(out) as folder:
        targets = [out, *(_target(entry, out, path) for entry in packed.files[1:])]
        staged = [folder / str(number) for number in range(len(targets))]
        packed.restore(staged)
        _refuse_others(targets[1:], staged[1:])
        for target, made in reversed(list(zip(targets, staged, strict=True))):  # the model behind its data
            target.parent.mkdir(parents=True, exist_ok=True)
            made.replace(target)
    names = (out.name, *(entry.name for entry in packed.files[1:]))
    written = sum(entry.size for entry in packed.files)
    return Packing(names, BeforeAfter(path.stat().st_size, written))


def _target(entry: PackedFile, out: Path, packed: Path) -> Path:
    """Return where a data file goes.

    Raises:
        ModelError: That is outside the model's folder, or the model's own name.
    """
    target = out.parent / entry.name
    if leaves_folder(entry.name, out.parent):
        raise ModelError(
            f"'{packed}' would write '{entry.name}', outside the folder of '{out}': do not trust it"
        )
    if target.resolve() in (out.resolve(), packed.resolve()):
        raise ModelError(
            f"the data file '{entry.name}' needs the name '{target}': give the output another name"
        )
    return target


def _refuse_others(targets: Sequence[Path], made: Sequence[Path]) -> None:
    """Refuse to replace data files that hold something else, since nobody named them."""
    for target, new in zip(targets, made, strict=True):
        if target.exists() and not (target.is_file() and cmp(target, new, shallow=False)):
            raise ModelError(f"'{target}' is there already with other content: unpack into another folder")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a folder beside an output, from where files are renamed; what is left in it goes.

    Raises:
        ModelError: A file cannot be written.
    """
    if out.is_dir():
        raise ModelError(f"'{out}' is a folder: name the file to write")
    if not out.parent.is_dir():
        raise ModelError(f"'{out}' cannot be written: the folder '{out.parent}' does not exist")
    try:
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as folder:
            yield Path(folder)
    except OSError as error:
        raise ModelError(f"'{out}' cannot be written: {error.strerror}") from error
