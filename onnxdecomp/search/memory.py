"""What a search measured, kept for the next one: by the contents of model, samples and chains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256

import numpy as np

from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model
from onnxdecomp.runtime.cache import Cache
from onnxdecomp.runtime.session import Array
from onnxdecomp.search.replacement import Replacements
from onnxdecomp.weights.moments import Moments

MAX_KEPT_BYTES = 1 << 25
"""Moments of a layer that are larger than this are gathered anew each time."""

Figures = dict[str, float]
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
        self._base = {"contents": digest.hexdigest(), **settings}

    def number(
        self, kind: str, replaced: Replacements, make: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Return figures of a model with replacements; made now when they are not known.

        A kind that names a function of the user, ``package.module:function``, is not kept: the name does not
        say what it computes.
        """
        if ":" in kind:
            return make()
        key = {**self._base, "replaced": contents(replaced)}
        known = self._cache.get(kind, key)
        if known is None:
            known = make()
            self._cache.put(kind, key, known)
        return known

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
            if moments.second.nbytes <= MAX_KEPT_BYTES:
                arrays = {"n_patches": np.array(moments.n_patches), "mean": moments.mean}
                self._cache.put_arrays(
                    "moments", self._moments_key(group), {**arrays, "second": moments.second}
                )
        return found

    def _moments_key(self, group: LayerGroup) -> dict[str, object]:
        return {**self._base, "layer": group.layer.key, "spec": asdict(group.layer.spec)}


def contents(replaced: Replacements) -> str:
    """Return a digest of all that replacements write into a model."""
    digest = sha256()
    for key in sorted(replaced):
        replacement = replaced[key]
        digest.update(f"{key} {replacement.chain.method} {replacement.chain.ranks}".encode())
        for array in replacement.chain.weights:
            digest.update(np.ascontiguousarray(array).tobytes())
        if replacement.bias is not None:
            digest.update(np.ascontiguousarray(replacement.bias).tobytes())
    return digest.hexdigest()
