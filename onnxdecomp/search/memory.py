"""What a search found out, kept for the next one: by the contents of model, samples and code.

What follows from those and from a name, as the chain of a method, its ranks and a fit does, is known by that
name: so what such a chain does to the network is known before the chain is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.graph.external import all_tensors, is_external
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model
from onnxdecomp.runtime.cache import PLAIN_KINDS, Cache
from onnxdecomp.runtime.session import Array, read_proto
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.replacement import Replacements
from onnxdecomp.weights.moments import Moments

MAX_KEPT_BYTES = 1 << 25
"""Moments of a layer, or outputs of the original, that are larger than this are made anew each time."""

Gather = Callable[[Sequence[LayerGroup]], Mapping[str, Moments]]


class Memory:
    """The values of one model on one set of samples.

    Args:
        cache: Where they are kept.
        model: The model.
        samples: All samples of the search, part by part.
        settings: What else every value depends on.
    """

    def __init__(
        self,
        cache: Cache,
        model: Model,
        samples: Sequence[Mapping[str, Array]],
        settings: Mapping[str, object],
    ) -> None:
        self._cache = cache
        digest = sha256(model.proto.SerializeToString(deterministic=True))
        for path in sorted(model.data_files):
            digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns} {path}".encode())
        for part in samples:
            for name in sorted(part):
                digest.update(f"{name} {part[name].shape} {part[name].dtype}".encode())
                digest.update(np.ascontiguousarray(part[name]).tobytes())
        self._base = {"contents": digest.hexdigest(), "code": _code(), **settings}

    def get(self, kind: str, key: Mapping[str, object]) -> dict[str, Any] | None:
        """Return what was kept under a key; None when there is nothing."""
        return self._cache.get(kind, {**self._base, **key})

    def put(self, kind: str, key: Mapping[str, object], value: Mapping[str, object]) -> None:
        """Keep a value that JSON can express."""
        self._cache.put(kind, {**self._base, **key}, value)

    def number(self, kind: str, replaced: Replacements, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return figures of a model with replacements; made now when they are not known.

        A kind that names a function of the user, ``package.module:function``, is not kept: the name does not
        say what it computes.
        """
        return self._number(kind, {"replaced": contents(replaced)}, make)

    def number_of_model(
        self, kind: str, model: RuntimeModel, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return figures of any model, as `number`; made anew where it has weights in files of their own."""
        proto = read_proto(model)
        if any(is_external(tensor) for tensor in all_tensors(proto)):
            return make()
        contained = sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        return self._number(kind, {"model": contained}, make)

    def _number(
        self, kind: str, key: Mapping[str, object], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        if ":" in kind:
            return make()
        known = self.get(kind, key)
        if known is None:
            known = make()
            self.put(kind, key, known)
        return known

    def outputs(self, part: str, make: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """Return the original's outputs on a part of the samples; made now when they are not known."""
        known = self.known_outputs(part)
        if known is not None:
            return known
        made = make()
        self.keep_outputs(part, made)
        return made

    def known_outputs(self, part: str) -> Mapping[str, Array] | None:
        """Return the original's outputs on a part of the samples, if they are known."""
        return self._cache.get_arrays("outputs", {**self._base, "part": part})

    def keep_outputs(self, part: str, made: Mapping[str, Array]) -> None:
        """Keep the original's outputs on a part of the samples, where they are plain and small."""
        plain = all(isinstance(a, np.ndarray) and a.dtype.kind in PLAIN_KINDS for a in made.values())
        if plain and sum(array.nbytes for array in made.values()) <= MAX_KEPT_BYTES:
            self._cache.put_arrays("outputs", {**self._base, "part": part}, made)

    def moments(self, groups: Sequence[LayerGroup], gather: Gather) -> dict[str, Moments]:
        """Return the moments of layers by key, gathering those that are not known."""
        found: dict[str, Moments] = {}
        missing = []
        for group in groups:
            arrays = self._cache.get_arrays("moments", self._moments_key(group))
            if arrays is None:
                missing.append(group)
            else:
                found[group.layer.key] = Moments(int(arrays["n_patches"]), arrays["mean"], arrays["second"])
        if not missing:
            return found
        for key, moments in gather(missing).items():
            found[key] = moments
            (group,) = (g for g in missing if g.layer.key == key)
            if isinstance(moments.second, np.ndarray) and moments.second.nbytes <= MAX_KEPT_BYTES:
                arrays = {"n_patches": np.array(moments.n_patches), "mean": moments.mean}
                self._cache.put_arrays(
                    "moments", self._moments_key(group), {**arrays, "second": moments.second}
                )
        return found

    def _moments_key(self, group: LayerGroup) -> dict[str, object]:
        return {**self._base, "layer": group.layer.key, "spec": asdict(group.layer.spec)}


def contents(replaced: Replacements) -> str:
    """Return a digest of all that replacements write into a model, or of what that follows from."""
    digest = sha256()
    for key in sorted(replaced):
        replacement = replaced[key]
        digest.update(f"{key} {replacement.identity}".encode())
        if replacement.identity:
            continue
        digest.update(f"{replacement.chain.method} {replacement.chain.ranks}".encode())
        for array in replacement.chain.weights:
            digest.update(np.ascontiguousarray(array).tobytes())
        if replacement.bias is not None:
            digest.update(np.ascontiguousarray(replacement.bias).tobytes())
    return digest.hexdigest()


@cache
def _code() -> str:
    """Return a digest of the package's source: what other code made of the same input may differ."""
    digest = sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
