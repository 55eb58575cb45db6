"""How much worse than the original a model is, and how sure that is."""

from dataclasses import dataclass
from math import hypot, isfinite, sqrt

SMOOTHING_DOUBT = 0.2
"""By what share a loss that is not counted may be wrong, however many samples there are."""


@dataclass(frozen=True)
class Drop:
    """How much worse than the original a model is; negative when it is better.

    Args:
        value: Before - after in the unit of the metric (0.01 is one point of top1). Of ``sqnr``: the noise
            power over that of the signal, where 0.01 is 20 dB, since an unchanged model has no finite dB.
        standard_error: Of `value` over the choice of the samples. It is 0 when no sample differs, however
            few there are (`upper` allows for that), and infinite when it cannot be known.
        before: Score of the original. In dB an unchanged output counts `LIMIT_DB`.
        after: Score of the model.
        n_samples: Samples compared.
        counted: True where each sample is right or wrong, in whole or in parts.
        smoothed: What is lost by an estimate with less noise than counted samples have: by what the original
            believes of the classes (`Beliefs`), or by its margins (`Margins`). None where there is none.
        smoothed_error: Standard error of that over the choice of the samples.
        is_ceiling: True where that is somewhat too high, and so may only say that less is lost than counted.
        output: Name of the output that this is of, where several are compared.
    """

    value: float
    standard_error: float
    before: float
    after: float
    n_samples: int
    counted: bool = False
    smoothed: float | None = None
    smoothed_error: float = 0.0
    is_ceiling: bool = False
    output: str = ""

    @property
    def bound(self) -> float:
        """What is lost at the most, within a standard error, and never less than what was measured."""
        counted = self.value + self.standard_error
        if self.smoothed is None:
            return counted
        if self.is_ceiling:
            return min(counted, max(self.value, self.smoothed + self.smoothed_error))
        return max(self.value, sum(self.likely()))

    def likely(self) -> tuple[float, float]:
        """Return what is lost, counted and smoothed averaged, and the standard error of that.

        No error of counted samples is 0 because none of them differed.
        """
        return self.with_smoothed(self.value, max(self.standard_error, self.counted / self.n_samples))

    def with_smoothed(self, value: float, error: float) -> tuple[float, float]:
        """Return a loss and its standard error averaged with the smoothed one, each as far as it is known."""
        if self.smoothed is None or not (isfinite(value) and isfinite(error)):
            return value, error
        doubt = hypot(self.smoothed_error, SMOOTHING_DOUBT * self.smoothed)
        if value == 0.0 and not self.is_ceiling:
            doubt = max(doubt, self.n_samples**-2)  # no pair of a margin and a movement says that one changes
        if not (error > 0 and doubt > 0):
            return value, error
        own, theirs = error**-2, doubt**-2
        return (own * value + theirs * self.smoothed) / (own + theirs), (own + theirs) ** -0.5

    def held(self, decided: "Drop") -> float:
        """Return the most that is lost, as far as these samples and those that a choice was made on tell.

        On these, which are unseen, the drop counts as it is; over all of them with its standard error.

        Args:
            decided: The drop on the samples that the choice was made on.
        """
        return max(self.value, self.pooled(decided).bound)

    def upper(self, z: float = 1.64) -> float:
        """Return what the drop over all samples there could be stays below: at 95 % for z = 1.64.

        Where samples are counted, the standard error is at least that with two samples more, one that only
        the original gets right and one that only the other does: no differing sample among 1000 means a
        drop below 0.0024, not 0.

        Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data", Journal of Educational and Behavioral Statistics 37 (2012), for
        the two samples; the value itself stays as observed.
        """
        return self.value + z * max(self.standard_error, self._error_with_two_more if self.counted else 0.0)

    def pooled(self, other: "Drop") -> "Drop":
        """Return the drop over these samples and those of another part of the data together.

        Where it is of another output there, no output loses more over all samples.
        """
        n = self.n_samples + other.n_samples
        own, theirs = self.n_samples / n, other.n_samples / n
        smoothed = None
        if self.smoothed is not None and other.smoothed is not None:
            smoothed = own * self.smoothed + theirs * other.smoothed
        return Drop(
            own * self.value + theirs * other.value,
            hypot(own * self.standard_error, theirs * other.standard_error),
            own * self.before + theirs * other.before,
            own * self.after + theirs * other.after,
            n,
            self.counted,
            smoothed,
            hypot(own * self.smoothed_error, theirs * other.smoothed_error),
            self.is_ceiling,
            self.output,
        )

    @property
    def _error_with_two_more(self) -> float:
        n = self.n_samples
        squares = n * (n * self.standard_error**2 + self.value**2)  # sum of the squared differences
        variance = (squares + 2) / (n + 2) - (n * self.value / (n + 2)) ** 2
        return sqrt(variance / (n + 2))
