"""One frozen configuration in three levels: for all layers, for an operator type, for single layers.

The command line, the Python API and a TOML recipe build the same object::

    rank = "ratio:0.5"            # all layers
    [op_type.Gemm]
    rank = "energy:0.9"           # every Gemm
    [layer."/head/*"]
    rank = "none"                 # layers whose name matches; wins over the operator's type
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from onnxdecomp.errors import UsageError, unknown_name

FLAGS = ("allow_slower", "constant_weights", "force", "int8")
"""Entries that are true or false."""

TEXTS = (
    *("rank", "method", "metric", "verify", "calibration", "evaluation", "cache"),
    *("cluster", "cluster_centroids", "cluster_scale"),
)
"""Entries that are words."""

SHARES = ("max_error", "max_drop", "target_latency", "target_macs", "target_size")
"""Entries that are numbers with a fraction."""

COUNTS = ("threads", "jobs", "finetune", "rank_multiple", "seed", "opset", "cluster_group")
"""Entries that are whole numbers."""

TARGETS = ("target_latency", "target_macs", "target_size")
"""What can be asked for as a share of the original; one at a time."""

STEPS = ("pruning", "whitening", "refit", "joint", "bias", "relu", "asymmetric", "affine")
"""What of the fitting to data can be switched off."""

MAX_CLUSTER_BITS = 16

CODEBOOK_FIELDS = ("cluster", "cluster_group", "cluster_centroids", "cluster_scale")
"""What every level can say of codebooks."""

Verify = Literal["model", "layers", "none"]
Centroids = Literal["float16", "bfloat16", "int16"]
Scale = Literal["none", "channel"]

DENSE = (None, "none")
"""What `cluster` is where weights stay dense."""


@dataclass(frozen=True)
class LayerRule:
    """What one level of the configuration says about a layer; None leaves it to the level above."""

    rank: str | None = None
    method: str | None = None
    cluster: str | int | None = None
    cluster_group: int | None = None
    cluster_centroids: Centroids | None = None
    cluster_scale: Scale | None = None

    @property
    def says_how_to_cluster(self) -> bool:
        """Whether it sets anything of codebooks."""
        return any(getattr(self, name) is not None for name in CODEBOOK_FIELDS)


@dataclass(frozen=True)
class CodebookRule:
    """How one weight becomes a codebook; as the fields of `Config`.

    Args:
        bits: Of an index; None where they are chosen.
        dense: Whether it stays dense.
        group: Output channels that share a codebook; 0 for all.
        centroids: How they are stored.
        scaled: Whether each output channel has a scale of its own.
    """

    bits: int | None
    dense: bool
    group: int
    centroids: Centroids
    scaled: bool


@dataclass(frozen=True)
class Config:
    """How to convert a model.

    Args:
        rank: Rank policy: ``auto``, ``none``, ``full``, a number, ``ratio:X``, ``energy:X``, ``evbmf[:W]``.
        method: ``auto``, a method's name, or ``name/variant``.
        op_types: Rules per operator type.
        layers: Rules per name pattern; the first that matches counts.
        include: Name patterns of the layers that may be decomposed; empty for all.
        exclude: Name patterns of layers that are kept.
        max_error: Largest relative weight error that rank ``auto`` accepts for a layer.
        rank_multiple: Ranks are snapped to multiples of this; None takes the channel block of the machine.
        calibration: Samples of the model's inputs: an ``.npz`` by input name, a folder of ``.npy``, or
            ``package.module:function``; None makes seeded random inputs.
        evaluation: Samples that accuracy is measured on: as `calibration`, with an array ``labels``; None
            sets a part of the calibration samples aside.
        max_drop: Largest loss of accuracy, in the metric's unit (0.01 is one percentage point of top-1).
        target_latency: Latency to reach, as a share of the original's; also `target_macs`, `target_size`.
        target_macs: Multiply-accumulates of the layers to reach, as a share.
        target_size: Bytes of the layers' weights to reach, as a share.
        int8: Quantize to INT8 after decomposition, inside the same budget, where that is faster.
        cluster: Store weights as indices of so many bits, 1..16, into codebooks of 16-bit centroids, after
            decomposition; ``auto`` chooses the bits of each weight inside the budget. None clusters nothing.
        cluster_group: Output channels that share a codebook; 0 for all of a weight.
        cluster_centroids: How centroids are stored.
        cluster_scale: ``channel`` gives each output channel a scale in float32, so that channels of all sizes
            share a codebook.
        finetune: Steps of training after decomposition, against the original on the calibration samples;
            rank ``auto`` decomposes further for it than the budget allows before. None trains nothing.
        opset: Operator set to raise the model to first; None leaves it.
        constant_weights: Take weights that are listed as inputs too for constants, and list them no more.
        without: Steps of fitting to data that are left out: names of `STEPS`.
        shapes: Shape of a graph input by name, for inputs whose sizes the model leaves open.
        verify: How much is proved before the output is written.
        metric: How outputs are compared when they are not equal by construction; None takes what suits the
            outputs and the labels.
        threads: Threads of onnxruntime when something is timed or verified.
        jobs: Layers worked on, and batches run, side by side where nothing is timed; None takes one per
            usable core. The result is the same for any number.
        seed: Seed of every random choice.
        allow_slower: Take chains that are measured to be slower than their layers, when ranks were named.
            Nothing is timed then but under ``auto``, so that the result depends on input and seed alone.
        cache: Folder that keeps latencies, moments and evaluations for the next run; None is one of the
            user's own, ``none`` keeps nothing.
        force: Write the output even if the verification fails.
    """

    rank: str = "auto"
    method: str = "auto"
    op_types: Mapping[str, LayerRule] = field(default_factory=dict)
    layers: Mapping[str, LayerRule] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_error: float = 0.1
    rank_multiple: int | None = None
    calibration: str | None = None
    evaluation: str | None = None
    max_drop: float | None = None
    target_latency: float | None = None
    target_macs: float | None = None
    target_size: float | None = None
    int8: bool = False
    cluster: str | int | None = None
    cluster_group: int = 0
    cluster_centroids: Centroids = "float16"
    cluster_scale: Scale = "none"
    finetune: int | None = None
    opset: int | None = None
    constant_weights: bool = False
    without: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    verify: Verify = "model"
    metric: str | None = None
    threads: int = 1
    jobs: int | None = None
    seed: int = 0
    allow_slower: bool = False
    cache: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.verify not in get_args(Verify):
            raise unknown_name("--verify level", str(self.verify), get_args(Verify))
        self._check_numbers()
        if not 0 < self.max_error < 1:
            raise UsageError(f"max_error is {self.max_error}: give a relative error between 0 and 1.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"max_drop is {self.max_drop}: give 0 or more, as in 0.01 for one point.")
        self._check_targets()
        self._check_clustering()
        for name in self.without:
            if name not in STEPS:
                raise unknown_name("step", name, STEPS)
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}: give 1 or more.")
        for option in ("jobs", "finetune", "rank_multiple"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}: give 1 or more.")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}: give 0 or more.")

    @property
    def has_target(self) -> bool:
        """Whether a share of the original's cost is to be reached."""
        return any(getattr(self, name) is not None for name in TARGETS)

    def _check_numbers(self) -> None:
        """Refuse what is no number, or None where a number is needed."""
        for entry in fields(self):
            if entry.name not in (*SHARES, *COUNTS):
                continue
            value = getattr(self, entry.name)
            if (value is not None or entry.default is not None) and not _has_type(entry.name, value):
                expected = "a number" if entry.name in SHARES else "a whole number"
                raise UsageError(f"{entry.name} is {value!r}: give {expected}.")

    def _check_targets(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        for name in given:
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give a share of the original, as in 0.5.")
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} cannot both be reached for: give one of them.")
        given += ["max_drop"] if self.max_drop is not None else []
        given += ["int8"] if self.int8 else []
        given += ["finetune"] if self.finetune is not None else []
        given += ["eval"] if self.evaluation is not None else []
        if given and self.calibration is None:
            option = f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{option} needs samples to fit to: give --calibration X.npz.")

    @property
    def clusters(self) -> bool:
        """Whether any weight is to become a codebook."""
        return any(cluster not in DENSE for cluster in (self.cluster, *(r.cluster for r in self._all_rules)))

    def codebook_rule(self, key: str, node_name: str, op_type: str) -> CodebookRule:
        """Return how the weight of a layer is clustered, by the same levels as `rule_for`."""
        rules = self._rules(key, node_name, op_type)

        def said(name: str) -> Any:
            own = (getattr(rule, name) for rule in rules)
            return next((value for value in own if value is not None), getattr(self, name))

        cluster, group, centroids, scale = map(said, CODEBOOK_FIELDS)
        bits = None if cluster in (*DENSE, "auto") else int(cluster)
        return CodebookRule(bits, cluster in DENSE, group, centroids, scale == "channel")

    def _check_clustering(self) -> None:
        _check_codebook(self)
        for rule in self._all_rules:
            _check_codebook(rule)
        if any(rule.cluster == "auto" for rule in self._all_rules):
            raise UsageError(
                "cluster = auto is for all layers, since bits are chosen together: give it as --cluster, and "
                "to single layers bits or none."
            )
        how = (self.cluster_group, self.cluster_centroids, self.cluster_scale)
        if not self.clusters and how != (0, "float16", "none"):
            raise UsageError(
                "--cluster-group, --cluster-centroids and --cluster-scale say how to cluster: give --cluster "
                "too."
            )
        if self.clusters and self.int8:
            raise UsageError(
                "--cluster and --int8 exclude each other, since INT8 stores every weight in 8 bits of its "
                "own: give one of them."
            )
        if self.cluster == "auto" and self.calibration is None:
            raise UsageError(
                "--cluster auto chooses bits by what they do to the outputs and needs samples: give "
                "--calibration X.npz, or a number of bits as in --cluster 4."
            )
        if self.opset is not None and self.opset < 1:
            raise UsageError(f"opset is {self.opset}: give the operator set to raise the model to.")

    def rule_for(self, key: str, node_name: str, op_type: str) -> tuple[str, str]:
        """Return rank policy and method for a layer: its own rule, else its type's, else the general one."""
        rules = self._rules(key, node_name, op_type)
        rank = next((r.rank for r in rules if r.rank is not None), self.rank)
        method = next((r.method for r in rules if r.method is not None), self.method)
        return rank, method

    def _rules(self, key: str, node_name: str, op_type: str) -> list[LayerRule]:
        """Return what is said of a layer alone, the most special first."""
        rules = [rule for pattern, rule in self.layers.items() if matches(pattern, key, node_name)][:1]
        return [*rules, self.op_types[op_type]] if op_type in self.op_types else rules

    @property
    def _all_rules(self) -> list[LayerRule]:
        return [*self.op_types.values(), *self.layers.values()]

    def selects(self, key: str, node_name: str) -> bool:
        """Tell whether `include` and `exclude` let a layer be decomposed."""
        included = not self.include or any(matches(p, key, node_name) for p in self.include)
        return included and not any(matches(p, key, node_name) for p in self.exclude)


def _check_codebook(rule: Config | LayerRule) -> None:
    """Refuse what makes no sense of codebooks at one level."""
    text = str(rule.cluster)
    if rule.cluster not in (*DENSE, "auto") and not (text.isdecimal() and 1 <= int(text) <= MAX_CLUSTER_BITS):
        raise UsageError(f"--cluster {text}: give 1 to {MAX_CLUSTER_BITS} bits, auto or none.")
    for what, given, known in (
        ("type of centroids", rule.cluster_centroids, get_args(Centroids)),
        ("scale of a codebook", rule.cluster_scale, get_args(Scale)),
    ):
        if given is not None and given not in known:
            raise unknown_name(what, given, known)
    if rule.cluster_group is not None and rule.cluster_group < 0:
        raise UsageError(f"cluster_group is {rule.cluster_group}: give 1 or more output channels.")


def matches(pattern: str, key: str, node_name: str) -> bool:
    """Tell whether a shell pattern names a layer, by its output tensor or by its node.

    >>> matches("/head/*", "/head/fc_output_0", "fc")
    True
    """
    return fnmatchcase(key, pattern) or fnmatchcase(node_name, pattern)


def load_recipe(path: Path, base: Config | None = None) -> Config:
    """Read a TOML recipe on top of `base`.

    Raises:
        UsageError: The file is missing, is not TOML, or holds an unknown or ill-typed entry.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {path} is not valid TOML: {error}.") from error
    values: dict[str, Any] = {}
    for table, target in (("op_type", "op_types"), ("layer", "layers")):
        values[target] = {name: _rule(path, name, rule) for name, rule in entries.pop(table, {}).items()}
    known = {f.name for f in fields(Config)}
    for name, value in entries.items():
        if name not in known or name in ("op_types", "layers"):
            raise unknown_name(f"entry in {path}", name, known - {"op_types", "layers"})
        values[name] = _entry(path, name, value)
    return replace(base or Config(), **values)


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME=1x3x224x224`` arguments.

    >>> parse_shapes(["x=1x3x32x32"])
    {'x': (1, 3, 32, 32)}

    Raises:
        UsageError: An argument has another form.
    """
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        parts = sizes.lower().split("x")
        if not separator or not name or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise UsageError(
                f"--shape {text}: write the input's name and sizes, as in --shape x=1x3x224x224."
            )
        shapes[name] = tuple(int(p) for p in parts)
    return shapes


def _rule(path: Path, name: str, entries: object) -> LayerRule:
    if not isinstance(entries, dict):
        raise UsageError(f"{path}: '{name}' must be a table, as of rank and method.")
    known = [entry.name for entry in fields(LayerRule)]
    for key in entries:
        if key not in known:
            raise unknown_name(f"entry of '{name}' in {path}", key, known)
    return LayerRule(**{key: _entry(path, key, value) for key, value in entries.items()})


def _entry(path: Path, name: str, value: Any) -> Any:
    """Bring a TOML value to the type of the field it is for."""
    if name in TEXTS:
        return str(value)
    if name in ("include", "exclude", "without"):
        return (value,) if isinstance(value, str) else tuple(str(v) for v in value)
    if name == "shapes":
        return parse_shapes([f"{key}={sizes}" for key, sizes in value.items()])
    if not _has_type(name, value):
        raise UsageError(f"{path}: {name} = {value!r} has the wrong type.")
    return value


def _has_type(name: str, value: object) -> bool:
    """Tell whether a value is true or false for a flag, else a number of the kind that its entry is."""
    if name in FLAGS or isinstance(value, bool):
        return name in FLAGS and isinstance(value, bool)
    return isinstance(value, Real if name in SHARES else Integral)
