"""The value types of a report: plain data, ready for JSON."""

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BeforeAfter:
    """One figure before and after; None where it could not be known."""

    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        """Before / after: how many times smaller or faster."""
        if not self.before or not self.after:
            return None
        return self.before / self.after


@dataclass(frozen=True)
class LayerOutcome:
    """What became of one layer.

    Args:
        key: Name of the layer's first output.
        op_type: Operator.
        status: Whether it was decomposed.
        reason: Why it was kept; empty when decomposed.
        method: Full name of the method; ``pruned`` where the layer only lost channels.
        ranks: Ranks of the method.
        weight_shape: ``(O, I/G, *K)``.
        pruned_shape: The same without the channels that it lost; empty where it lost none.
        weight_error: Relative Frobenius error of the weight, in the channels that are left.
        output_error: Relative error of the layer's output on random input.
        data_error: The same on the calibration samples, before recovery.
        fit: How the factorization was fitted to them.
        params: Weights.
        macs: Multiply-accumulates of one run.
        latency_ms: Of the layer alone, where it was timed.
    """

    key: str
    op_type: str
    status: Literal["decomposed", "kept"]
    reason: str = ""
    method: str = ""
    ranks: tuple[int, ...] = ()
    weight_shape: tuple[int, ...] = ()
    pruned_shape: tuple[int, ...] = ()
    weight_error: float | None = None
    output_error: float | None = None
    data_error: float | None = None
    fit: str = ""
    params: BeforeAfter = BeforeAfter(None, None)
    macs: BeforeAfter = BeforeAfter(None, None)
    latency_ms: BeforeAfter = BeforeAfter(None, None)


@dataclass(frozen=True)
class WeightOutcome:
    """What became of one stored weight when weights were clustered.

    Args:
        name: Its name; in a body behind the key of its graph.
        op_type: Operator of the first layer that uses it.
        status: Whether it became a codebook.
        shape: Its shape as it is stored.
        reason: Why it stays dense; empty when clustered.
        bits: Of one index.
        n_centroids: Of each codebook.
        n_codebooks: One, or one for each group of output channels.
        weight_error: Relative Frobenius error of the weight.
        data_error: Relative error of the layer's output on the calibration samples, where they reach it.
        note: What is to be known of the codebook, as a sentence; empty when there is nothing.
        size_bytes: Of the numbers: dense, and as indices, centroids and scales.
    """

    name: str
    op_type: str
    status: Literal["clustered", "dense"]
    shape: tuple[int, ...]
    reason: str = ""
    bits: int | None = None
    n_centroids: int | None = None
    n_codebooks: int | None = None
    weight_error: float | None = None
    data_error: float | None = None
    note: str = ""
    size_bytes: BeforeAfter = BeforeAfter(None, None)


@dataclass(frozen=True)
class Latency:
    """Measured latency of the whole model, both in turn in one run.

    Args:
        median_ms: Median of the runs.
        spread_ms: Half the distance between the quartiles.
        speedup: Median of the paired ratios before / after.
        speedup_low: Lower end of their spread.
        speedup_high: Upper end of their spread.
        n_runs: Runs of each model.
    """

    median_ms: BeforeAfter
    spread_ms: BeforeAfter
    speedup: float
    speedup_low: float
    speedup_high: float
    n_runs: int

    @property
    def beyond_noise(self) -> bool:
        """True when the spread of the speed-up excludes 1."""
        return self.speedup_low > 1.0 or self.speedup_high < 1.0


@dataclass(frozen=True)
class Footprint:
    """What a model with codebooks takes, each figure by itself.

    Args:
        dense_bytes: Of the converted model with dense weights in place of codebooks.
        file_bytes: Of the model file and its data as they are written.
        packed_bytes: Of the packed file that `onnxdecomp pack` makes of them.
        load_ms: Time until the original and the converted model are ready to run, each in a fresh process;
            None where they were not run.
        memory_bytes: Resident memory of that process at most.
    """

    dense_bytes: int
    file_bytes: int
    packed_bytes: int
    load_ms: BeforeAfter
    memory_bytes: BeforeAfter


@dataclass(frozen=True)
class Accuracy:
    """What a conversion loses, measured on samples that the choice did not see.

    Args:
        metric: Name of the metric.
        data: Which samples.
        before: Of the original.
        after: Of the converted model.
        drop: How much worse, in the metric's unit.
        standard_error: Of the drop, paired.
        budget: Largest drop allowed; None when only a target counted.
        n_samples: Samples behind these numbers.
        drop_by_margins: Of agreement, the drop told by the original's margins, with less noise than counted
            answers have; None of other metrics, and where there are no scores of classes.
        error_by_margins: Standard error of that.
        output: Name of the output that loses most, of which all of this is; empty where one is compared.
    """

    metric: str
    data: str
    before: float
    after: float
    drop: float
    standard_error: float
    budget: float | None
    n_samples: int
    drop_by_margins: float | None = None
    error_by_margins: float | None = None
    output: str = ""


@dataclass(frozen=True)
class Tuning:
    """What fine-tuning did.

    Args:
        n_tensors: Initializers that trained.
        n_values: Numbers in them.
        loss: What was made small.
        held_out: That loss on samples set aside.
        n_steps: Steps made.
        best_step: The step whose numbers were taken; 0 when those from before were best.
        notes: Sentences the user should read.
    """

    n_tensors: int
    n_values: int
    loss: str
    held_out: BeforeAfter
    n_steps: int
    best_step: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What a stage of a conversion cost."""

    name: str
    seconds: float
    peak_memory_bytes: int


@dataclass
class Report:
    """What a conversion did.

    Args:
        command: The options that led here.
        environment: Machine, versions, threads.
        model: Bytes, weights of decomposable layers, their MACs.
        layers: One outcome per layer of a decomposable kind.
        latency: None when the model was not timed.
        footprint: None when no weight was clustered.
        accuracy: None when it was not measured.
        recovered: Steps of closed-form recovery that brought the outputs nearer to the original's.
        finetuned: What training did; None when nothing trained.
        int8: Nodes of the decomposed model that run in INT8, by key.
        weights: One outcome per stored weight, when weights were to be clustered.
        output_error: Largest relative error of a graph output against the original, on seeded input.
        notes: Sentences the user should read.
        stages: Seconds and memory.
        proto: The converted model, when there was no output path.
    """

    command: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, BeforeAfter]
    layers: list[LayerOutcome]
    latency: Latency | None = None
    footprint: Footprint | None = None
    accuracy: Accuracy | None = None
    recovered: tuple[str, ...] = ()
    finetuned: Tuning | None = None
    int8: tuple[str, ...] = ()
    weights: list[WeightOutcome] = field(default_factory=list)
    output_error: float | None = None
    notes: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    proto: Any = None

    @property
    def decomposed(self) -> list[LayerOutcome]:
        """The layers that were decomposed."""
        return [layer for layer in self.layers if layer.status == "decomposed"]

    @property
    def clustered(self) -> list[WeightOutcome]:
        """The weights that became codebooks."""
        return [weight for weight in self.weights if weight.status == "clustered"]

    @property
    def changed(self) -> bool:
        """Whether the converted model computes other numbers than the original."""
        return bool(self.decomposed or self.int8 or self.clustered)
