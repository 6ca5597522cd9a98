"""What is believed of one hidden variable: probes fitted on some episodes, measured on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from doxastic.agents.calibration.channels import ChannelStudy
from doxastic.agents.calibration.control import ActionCurve, action_curve
from doxastic.agents.calibration.linear import fit_ridge
from doxastic.agents.calibration.measures import (
    Array,
    Curve,
    Estimate,
    FloatArray,
    coverage,
    explained_variance,
    mean_estimate,
    quantile_reliability,
    rank_correlation,
    reliability,
)
from doxastic.agents.calibration.report import (
    HELD_OUT,
    POSTERIOR,
    PROPAGATED,
    TRAINED,
    Measures,
    VariableReport,
)
from doxastic.agents.calibration.variables import (
    Prediction,
    Variable,
    fit_probe,
    posterior_prediction,
)
from doxastic.agents.calibration.visits import Visits

# Steps of a group that figures show one by one.
_SAMPLE = 1500


def sources_of(visits: Visits) -> dict[str, Array]:
    """Return what is probed, `[S, D]` each: of a belief its logarithms, as the policy reads it."""
    if visits.mean is None or visits.variance is None or visits.evidence is None:
        return {"h": visits.h}
    deviation, evidence = np.log(visits.variance) / 2, np.log1p(visits.evidence) / 2
    moments = np.concatenate([visits.mean, deviation], axis=1)
    return {
        "mean": visits.mean,
        "mean, variance": moments,
        "belief": np.concatenate([moments, evidence], axis=1),
        "h": visits.h,
    }


def groups_of(visits: Visits, trained: Sequence[float]) -> dict[str, Visits]:
    """Return the steps at the levels of training, at the others, and at each level alone."""
    is_trained = np.isin(visits.level, trained)
    masks = {TRAINED: is_trained, HELD_OUT: ~is_trained}
    masks |= {f"{level:g}": visits.level == level for level in np.unique(visits.level)}
    return {name: visits.rows(mask) for name, mask in masks.items() if mask.any()}


class VariableStudy:
    """The probes of a hidden variable.

    Args:
        variable: The variable.
        fitting: Visited steps to fit the probes to.
        known: The variables that the filter of the task knows.

    Attributes:
        variable: The variable.
        source: Which probe stands for what the agent believes: the belief's, else that of h.
    """

    def __init__(self, variable: Variable, fitting: Visits, known: Sequence[str]) -> None:
        self.variable, self._known = variable, known
        inputs, targets = sources_of(fitting), variable.targets(fitting)
        self.source = "belief" if "belief" in inputs else "h"
        self._linear = {k: fit_ridge(x, targets, fitting.episode) for k, x in inputs.items()}
        self._probes = {k: fit_probe(variable, x, fitting) for k, x in inputs.items()}
        self._channels = None
        if "mean" in self._linear:
            linear, posterior = self._linear["mean"], self.posterior(fitting)
            self._channels = ChannelStudy(variable, linear, fitting, posterior)

    def believed(self, visits: Visits) -> Prediction:
        """Return what the agent believes of the variable at visited steps."""
        return self._probes[self.source](sources_of(visits)[self.source])

    def posterior(self, visits: Visits) -> Prediction | None:
        """Return what could be known of it; None without a filter."""
        return posterior_prediction(self.variable, visits, self._known)

    def report(self, testing: Visits, trained: Sequence[float]) -> VariableReport:
        """Return all measures on other episodes, for every source and group of levels."""
        measures: dict[str, dict[str, Measures]] = {}
        groups = groups_of(testing, trained)
        for group, visits in groups.items():
            posterior = self.posterior(visits)
            for source, (found, linear) in self._predictions(visits, posterior).items():
                compared = None if source == POSTERIOR else posterior
                measured = measure(self.variable, found, linear, visits, compared)
                measures.setdefault(source, {})[group] = measured
        pair = {name: groups[name] for name in (TRAINED, HELD_OUT) if name in groups}
        ranked = self._channels
        return VariableReport(
            name=self.variable.name,
            classes=self.variable.classes,
            is_ordered=self.variable.is_ordered,
            is_logarithm=self.variable.is_logarithm,
            source=self.source,
            measures=measures,
            channels={k: ranked.report(x, self.posterior(x)) for k, x in groups.items()}
            if ranked
            else {},
            actions={name: self._actions(visits) for name, visits in pair.items()},
            samples={name: self._sample(visits) for name, visits in pair.items()},
        )

    def _predictions(
        self, visits: Visits, posterior: Prediction | None
    ) -> dict[str, tuple[Prediction, FloatArray]]:
        """Return, for every source, what it predicts and what a linear regression on it does."""
        found = {
            name: (self._probes[name](x), self._linear[name](x))
            for name, x in sources_of(visits).items()
        }
        if self._channels is not None and self.variable.is_ordered:
            propagated = self._channels.propagated(visits)
            found[PROPAGATED] = propagated, propagated.mean
        if posterior is not None:
            found[POSTERIOR] = posterior, posterior.mean
        return found

    def _actions(self, visits: Visits) -> dict[str, ActionCurve]:
        """Return the actions against what is believed, and against what could be known."""
        curves = {}
        for prefix, found in (("", self.believed(visits)), ("posterior ", self.posterior(visits))):
            if found is None:
                continue
            against = {f"{prefix}deviation": np.sqrt(found.variance)}
            if self.variable.is_ordered:
                against[f"{prefix}mean"] = found.mean[:, 0]
            for name, x in against.items():
                curves[name] = action_curve(x, visits.action, visits.episode)
        return curves

    def _sample(self, visits: Visits) -> dict[str, Array]:
        """Return some steps in columns: their levels, the variances, and the squared error."""
        some = visits.thinned(_SAMPLE, np.random.default_rng(0))
        found, posterior = self.believed(some), self.posterior(some)
        off = ((self.variable.targets(some) - found.mean) ** 2).sum(1)
        columns = {"level": some.level, "variance": found.variance, "error": off}
        if posterior is not None:
            columns["posterior"] = posterior.variance
        if self._channels is not None:
            columns["channel"] = self._channels.variance(some)
        return columns


def measure(
    variable: Variable,
    found: Prediction,
    linear: FloatArray,
    visits: Visits,
    posterior: Prediction | None,
) -> Measures:
    """Return how good predictions of a variable are at visited steps.

    Args:
        variable: The variable.
        found: The predictions.
        linear: A linear regression of its targets, `[S, K]`.
        visits: The steps.
        posterior: What the predictions are compared with; None for nothing.
    """
    episodes, targets = visits.episode, variable.targets(visits)
    off = ((targets - found.mean) ** 2).sum(1)
    measures: dict[str, Any] = {
        "explained": explained_variance(targets, linear, episodes),
        "rank_error": rank_correlation(found.variance, off, episodes),
    }
    if variable.is_ordered:
        moments = found.mean[:, 0], found.variance
        measures["coverage"] = coverage(targets[:, 0], *moments, episodes)
    if posterior is not None:
        apart = np.abs(found.mean - posterior.mean).mean(1)
        measures["distance"] = mean_estimate(apart, episodes)
        ranks = rank_correlation(found.variance, posterior.variance, episodes)
        measures["rank_posterior"] = ranks
    calibrated = _calibration(variable, found, visits)
    if calibrated is None:
        return Measures(steps=len(visits), **measures)
    error, curve, log_loss = calibrated
    return Measures(
        steps=len(visits), calibration_error=error, log_loss=log_loss, curve=curve, **measures
    )


def _calibration(
    variable: Variable, found: Prediction, visits: Visits
) -> tuple[Estimate, Curve, Estimate] | None:
    """Return calibration error, reliability curve and log loss.

    Of two values, the probability of the upper one is judged; of more, that of the likeliest. None
    where a true value is none of those that were probed: a noise level held out.
    """
    episodes = visits.episode
    if variable.classes is None:
        y, mean, variance = variable.values(visits), found.mean[:, 0], found.variance
        loss = (np.log(2 * np.pi * variance) + (y - mean) ** 2 / variance) / 2
        return *quantile_reliability(y, mean, variance, episodes), mean_estimate(loss, episodes)
    labels, p = variable.labels(visits), found.probability
    if p is None or labels.min() < 0:
        return None
    rows = np.arange(len(p))
    chosen = np.ones(len(p), int) if p.shape[1] == 2 else p.argmax(1)
    error, curve = reliability(p[rows, chosen], labels == chosen, episodes)
    loss = -np.log(np.maximum(p[rows, labels], 1e-12))
    return error, curve, mean_estimate(loss, episodes)
