"""Probabilistic probes: what can be read linearly from an agent's features, and how surely.

Every probe standardises its inputs, penalises its weights, and chooses the penalty by the error on
episodes that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from doxastic.agents.calibration.linear import (
    Array,
    FloatArray,
    Linear,
    Standard,
    fit_ridge,
    folds_of,
    principal_axes,
    standard_of,
)

# Of the squared weights of standardised inputs, beside the mean loss of a step.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
# A log variance further from that of the target than this is an extrapolation without meaning.
_LOG_VARIANCE_RANGE = 16.0
_ITERATIONS = 300
# Relative, of the loss in a step of the search.
_TOLERANCE = 1e-8


class CategoryProbe(NamedTuple):
    """Logistic regression: probabilities of C classes."""

    axes: Linear
    logits: Linear

    def __call__(self, x: Array) -> FloatArray:
        """Return the probabilities, `[S, C]`."""
        return np.asarray(softmax(self.logits(self.axes(x)), axis=1))


def fit_category(x: Array, labels: Array, classes: int, episodes: Array) -> CategoryProbe:
    """Return the logistic regression of `labels` `[S]`, 0 to `classes` - 1, on `x` `[S, D]`."""
    axes = principal_axes(x)
    z, one_hot = axes(x), np.eye(classes)[labels]

    def loss(rows: Array) -> Loss:
        inputs, target = z[rows], np.ascontiguousarray(one_hot[rows].T)

        def value(weights: Array) -> tuple[float, Array]:
            # Classes first: sums over a few columns of many rows take several times as long.
            logits = np.ascontiguousarray(_outputs(inputs, weights).T)
            logits -= logits.max(0)
            p = np.exp(logits)
            total = p.sum(0)
            p /= total
            error = float((np.log(total) - (target * logits).sum(0)).mean())
            return error, _gradient(inputs, (p - target).T)

        return value

    start = np.zeros((z.shape[1] + 1, classes))
    start[-1] = np.log(np.maximum(one_hot.mean(0), 1e-6))
    variance = np.append(z.var(0), 1.0)[:, None]
    weights = _chosen(loss, start, episodes, variance * np.full(classes, 1 / 4))
    return CategoryProbe(axes, Linear(weights[:-1], weights[-1]))


class GaussianProbe(NamedTuple):
    """A Gaussian whose mean and log variance are linear."""

    axes: Linear
    target: Standard
    outputs: Linear
    """Mean and log variance of the standardised target."""

    def __call__(self, x: Array) -> tuple[FloatArray, FloatArray]:
        """Return mean and variance, `[S]` each."""
        mean, log_variance = self.outputs(self.axes(x)).T
        variance = np.exp(np.clip(log_variance, -_LOG_VARIANCE_RANGE, _LOG_VARIANCE_RANGE))
        scale = self.target.deviation[0]
        return self.target.mean[0] + scale * mean, scale**2 * variance


def fit_gaussian(x: Array, y: Array, episodes: Array) -> GaussianProbe:
    """Return the Gaussian regression of `y` `[S]` on `x` `[S, D]` of greatest likelihood."""
    axes, scale = principal_axes(x), standard_of(y[:, None])
    z, target = axes(x), scale(y[:, None])[:, 0]

    def loss(rows: Array) -> Loss:
        inputs, wanted = z[rows], target[rows]

        def value(weights: Array) -> tuple[float, Array]:
            mean, raw = _outputs(inputs, weights).T
            log_variance = np.clip(raw, -_LOG_VARIANCE_RANGE, _LOG_VARIANCE_RANGE)
            precision, error = np.exp(-log_variance), mean - wanted
            misfit = error**2 * precision
            gradient = np.stack([error * precision, (raw == log_variance) * (1 - misfit) / 2], 1)
            return float((log_variance + misfit).mean()) / 2, _gradient(inputs, gradient)

        return value

    ridge = fit_ridge(z, target[:, None], episodes)
    residual = max(float(((target - ridge(z)[:, 0]) ** 2).mean()), 1e-6)
    start = np.zeros((z.shape[1] + 1, 2))
    start[:-1, 0], start[-1] = ridge.weight[:, 0], (ridge.bias[0], np.log(residual))
    variance = np.append(z.var(0), 1.0)[:, None]
    weights = _chosen(loss, start, episodes, variance * [1 / residual, 1 / 2])
    return GaussianProbe(axes, scale, Linear(weights[:-1], weights[-1]))


# From weights `[D + 1, K]`, the last row a bias, to the mean loss and its gradient.
Loss = Callable[[Array], tuple[float, Array]]


def _chosen(
    loss: Callable[[Array], Loss], start: FloatArray, episodes: Array, curvature: FloatArray
) -> FloatArray:
    """Return the weights of least penalised loss, with the penalty of least held-out loss.

    Args:
        loss: From a mask of steps `[S]` to their loss.
        start: Weights to start from, `[D + 1, K]`.
        episodes: Number of each step's episode, `[S]`.
        curvature: About the second derivative of the loss by each weight, `[D + 1, K]`. The inputs
            are uncorrelated, so that the mixed ones are small.
    """
    errors = np.zeros(len(PENALTIES))
    for fold in folds_of(episodes):
        weights, held_out = start, loss(fold)
        # From the strongest penalty to the weakest, each starting where the last one ended.
        for i in reversed(range(len(PENALTIES))):
            weights = _minimised(loss(~fold), weights, PENALTIES[i], curvature)
            errors[i] += held_out(weights)[0] * fold.sum()
    everything = np.ones(len(episodes), bool)
    return _minimised(loss(everything), start, PENALTIES[int(errors.argmin())], curvature)


def _minimised(loss: Loss, start: FloatArray, penalty: float, curvature: FloatArray) -> FloatArray:
    """Return the weights of least loss plus `penalty` times half their squares, biases free."""
    is_weight = np.arange(len(start))[:, None] < len(start) - 1
    # In units of the curvature all directions are alike: the search takes tens of steps, not
    # hundreds, and arrives.
    scale = np.sqrt(curvature + penalty * is_weight)

    def value(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(start.shape) / scale
        kept = weights * is_weight
        error, gradient = loss(weights)
        total = error + penalty / 2 * float((kept**2).sum())
        return total, ((gradient + penalty * kept) / scale).ravel()

    options = {"maxiter": _ITERATIONS, "ftol": _TOLERANCE}
    found = minimize(value, (start * scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(start.shape) / scale


def _outputs(inputs: Array, weights: Array) -> Array:
    return inputs @ weights[:-1] + weights[-1]


def _gradient(inputs: Array, error: Array) -> Array:
    """Return the gradient of a mean over steps from that of every step's outputs `[S, K]`."""
    return np.concatenate([inputs.T @ error, error.sum(0, keepdims=True)]) / len(inputs)
