"""The belief's own variance: what its channels follow, and what they say of a hidden variable."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from doxastic.agents.calibration.linear import Linear
from doxastic.agents.calibration.measures import Array, FloatArray, rank_correlation
from doxastic.agents.calibration.report import Channel
from doxastic.agents.calibration.variables import Prediction, Variable
from doxastic.agents.calibration.visits import Visits


class ChannelStudy:
    """The variance of every belief channel, against the error and the posterior of a variable.

    Of each, the channel that follows it best is chosen at the steps that fit the probes, and its
    correlation taken at others: the best of many on the same steps would flatter it.

    Args:
        variable: The variable.
        linear: A linear regression of its targets on the belief's mean.
        fitting: Steps to choose by.
        posterior: What could be known of the variable at these steps; None without a filter.
    """

    def __init__(
        self, variable: Variable, linear: Linear, fitting: Visits, posterior: Prediction | None
    ) -> None:
        self._variable, self._linear = variable, linear
        quantities = self._quantities(fitting, posterior)
        ranks = {k: channel_ranks(_variance(fitting), x) for k, x in quantities.items()}
        self._chosen = {k: int(np.argmax(np.nan_to_num(x, nan=-2))) for k, x in ranks.items()}

    def report(self, visits: Visits, posterior: Prediction | None) -> dict[str, Channel]:
        """Return the rank correlations with `error`, and with `posterior` where there is one."""
        found = {}
        for name, quantity in self._quantities(visits, posterior).items():
            variance, chosen = _variance(visits), self._chosen[name]
            ranks = channel_ranks(variance, quantity)
            rank = rank_correlation(variance[:, chosen], quantity, visits.episode)
            known = ranks[np.isfinite(ranks)]
            median = float(np.median(known)) if len(known) else float("nan")
            found[name] = Channel(chosen=chosen, rank=rank, median=median)
        return found

    def variance(self, visits: Visits) -> FloatArray:
        """Return the variance of the channel that follows the posterior best, else the error."""
        return _variance(visits)[:, self._chosen.get("posterior", self._chosen["error"])]

    def propagated(self, visits: Visits) -> Prediction:
        """Return the belief's own moments, taken through the linear regression on its mean.

        With s = w m + b and independent channels of variance v, Var[s] = sum w^2 v. No probe is
        fitted to the variance: this is what the variance itself says of an ordered variable.
        """
        variance = _variance(visits) @ self._linear.weight[:, 0] ** 2
        variance = np.maximum(variance, self._variable.floor)
        return Prediction(self._linear(_mean(visits)), variance, None)

    def _quantities(self, visits: Visits, posterior: Prediction | None) -> dict[str, FloatArray]:
        error = self._variable.targets(visits) - self._linear(_mean(visits))
        quantities = {"error": (error**2).sum(1)}
        return quantities if posterior is None else {**quantities, "posterior": posterior.variance}


def channel_ranks(variance: Array, quantity: Array) -> FloatArray:
    """Return the rank correlation of each column of `variance` `[S, M]` with `quantity` `[S]`.

    NaN where one of them is constant.
    """
    x, y = rankdata(variance, axis=0), rankdata(quantity)
    x, y = x - x.mean(0), y - y.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(y @ x / np.sqrt((x * x).sum(0) * (y @ y)))


def _mean(visits: Visits) -> Array:
    assert visits.mean is not None
    return visits.mean


def _variance(visits: Visits) -> FloatArray:
    assert visits.variance is not None
    return visits.variance.astype(np.float64)
