"""The hidden variables that an agent may believe something about, and predictions of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.agents.calibration.probes import fit_category, fit_gaussian
from doxastic.agents.calibration.visits import Visits

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# A variable with more whole values than this is predicted as a number.
_MOST_CLASSES = 16
# Of a variance, to that of the variable: observations are rounded to single precision.
_RELATIVE_FLOOR = 1e-10
# How many variables are studied of a task with many, unless they are named.
DEFAULT_VARIABLES = 4


class Variable(NamedTuple):
    """A hidden variable.

    With a few values it is predicted by probabilities, else by a Gaussian. The moments of an
    ordered one are those of its values; of an unordered one, of the indicators of its values. The
    noise level stands as its logarithm where no level is 0.
    """

    name: str
    column: int
    """Its column of the hidden state."""

    classes: FloatArray | None
    """Its values, `[C]`, those of the noise level in the order of the task; None for a number."""

    is_ordered: bool
    """Whether differences between its values mean anything."""

    is_logarithm: bool
    """Whether its values are logarithms of what the hidden state holds."""

    floor: float = 0.0
    """Least variance of a Gaussian prediction: a filter of exact readings is surer than numbers
    are precise."""

    def values(self, visits: Visits) -> FloatArray:
        """Return its true values, `[S]`."""
        column = visits.hidden[:, self.column]
        return np.log(column) if self.is_logarithm else column

    def labels(self, visits: Visits) -> Array:
        """Return the indices of its true values in `classes`, `[S]`; -1 for one not there."""
        assert self.classes is not None
        distance = np.abs(self.values(visits)[:, None] - self.classes)
        return np.where(distance.min(1) < 1e-6, distance.argmin(1), -1)

    def targets(self, visits: Visits) -> FloatArray:
        """Return what the mean of a prediction should be, `[S, K]`."""
        if self.is_ordered:
            return self.values(visits)[:, None]
        assert self.classes is not None
        return np.asarray(self.labels(visits)[:, None] == np.arange(len(self.classes)), float)


class Prediction(NamedTuple):
    """What is predicted of a variable at S steps."""

    mean: FloatArray
    """Expectation of its targets, `[S, K]`."""

    variance: FloatArray
    """Expected squared distance of its targets from that, `[S]`."""

    probability: FloatArray | None
    """Of its values, `[S, C]`; None where only the moments are predicted."""


class Probe(NamedTuple):
    """A probabilistic probe of a variable."""

    variable: Variable
    model: Any
    """A `CategoryProbe` or a `GaussianProbe`."""

    def __call__(self, x: Array) -> Prediction:
        """Return the prediction from inputs `[S, D]`."""
        if self.variable.classes is None:
            mean, variance = self.model(x)
            return Prediction(mean[:, None], variance, None)
        return of_probabilities(self.variable, self.model(x))


def fit_probe(variable: Variable, x: Array, visits: Visits) -> Probe:
    """Return the probabilistic probe of a variable from inputs `[S, D]` at visited steps."""
    if variable.classes is None:
        return Probe(variable, fit_gaussian(x, variable.values(visits), visits.episode))
    labels = variable.labels(visits)
    return Probe(variable, fit_category(x, labels, len(variable.classes), visits.episode))


def of_probabilities(variable: Variable, probability: FloatArray) -> Prediction:
    """Return the prediction that gives the variable's values these probabilities `[S, C]`."""
    if not variable.is_ordered:
        return Prediction(probability, 1 - (probability**2).sum(1), probability)
    assert variable.classes is not None
    mean = probability @ variable.classes
    variance = (probability * (variable.classes - mean[:, None]) ** 2).sum(1)
    return Prediction(mean[:, None], variance, probability)


def posterior_prediction(
    variable: Variable, visits: Visits, names: Sequence[str]
) -> Prediction | None:
    """Return what the filter predicts of a variable; None where it does not.

    Args:
        variable: The variable; of the noise level the classes are the filter's levels.
        visits: The visited steps.
        names: The variables of `visits.posterior_mean`.
    """
    if visits.posterior_mean is None or visits.posterior_variance is None:
        return None
    if variable.name == "noise" and visits.posterior_noise is not None:
        return of_probabilities(variable, visits.posterior_noise)
    if variable.name not in names:
        return None
    k = list(names).index(variable.name)
    mean = visits.posterior_mean[:, k]
    variance = np.maximum(visits.posterior_variance[:, k], variable.floor)
    if variable.classes is None:
        return Prediction(mean[:, None], variance, None)
    low, high = variable.classes
    upper = np.clip((mean - low) / (high - low), 0, 1)
    return of_probabilities(variable, np.stack([1 - upper, upper], axis=1))


def variables_of(
    names: Sequence[str],
    visits: Visits,
    levels: Sequence[float],
    chosen: Sequence[str] | None = None,
) -> list[Variable]:
    """Return the hidden variables to study: those that vary, the noise level last.

    Args:
        names: Names of the columns of the hidden state.
        visits: Visited steps, at all noise levels.
        levels: Noise levels of training.
        chosen: Names of variables; by default the first few and the noise level.

    Raises:
        ValueError: If there is no such variable, or none varies.
    """
    for name in chosen or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(names)}."
            raise ValueError(f"the task has no hidden variable {name!r}; {hint}")
    found = [
        _noise(i, visits, levels) if name == "noise" else _variable(name, i, visits)
        for i, name in enumerate(names)
    ]
    varying = [v for v in found if v is not None and (not chosen or v.name in chosen)]
    if not varying:
        raise ValueError(
            f"none of the hidden variables {', '.join(chosen or names)} varies at the visited "
            "steps: there is nothing to believe."
        )
    others = [v for v in varying if v.name != "noise"]
    noise = [v for v in varying if v.name == "noise"]
    return (others if chosen else others[:DEFAULT_VARIABLES]) + noise


def _variable(name: str, column: int, visits: Visits) -> Variable | None:
    values = visits.hidden[:, column]
    distinct = np.unique(values)
    if len(distinct) == 1:
        return None
    is_number = len(distinct) > _MOST_CLASSES or bool(np.any(distinct % 1))
    classes = None if is_number else distinct
    floor = _RELATIVE_FLOOR * float(values.var())
    return Variable(name, column, classes, is_number or len(distinct) == 2, False, floor)


def _noise(column: int, visits: Visits, levels: Sequence[float]) -> Variable | None:
    """Return the noise level as a choice among those of training; None if there is but one."""
    if len(set(levels)) == 1:
        return None
    is_logarithm = min(*levels, visits.hidden[:, column].min()) > 0
    values = np.array(levels)
    classes = np.log(values) if is_logarithm else values
    return Variable("noise", column, classes, True, is_logarithm)
