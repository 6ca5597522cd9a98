"""The result of a calibration study: plain data, its JSON and its table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from doxastic.agents.calibration.control import ActionCurve, Control
from doxastic.agents.calibration.measures import UNKNOWN, Array, Curve, Estimate

# Of what `Calibration.to_json` writes.
VERSION = 1
# Steps at the levels of training, at those held out, or at one level alone.
TRAINED, HELD_OUT = "trained", "held out"
# Sources of predictions beside the probes: the filter, and the belief's own moments.
POSTERIOR, PROPAGATED = "posterior", "propagated"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How good the predictions of one source are, over the steps of one group."""

    steps: int
    """Number of steps."""

    explained: Estimate
    """R^2 of a linear regression, or of the posterior's mean."""

    calibration_error: Estimate = UNKNOWN
    """Expected calibration error of the probabilities, or of the quantiles of a number."""

    log_loss: Estimate = UNKNOWN
    """Mean of -log of the probability, or of the density, of what is true."""

    coverage: Estimate = UNKNOWN
    """Share of true values within two deviations of the mean; .954 for a Gaussian."""

    rank_error: Estimate = UNKNOWN
    """Rank correlation of the predicted variance with the true squared error."""

    rank_posterior: Estimate = UNKNOWN
    """Rank correlation of the predicted variance with that of the posterior."""

    distance: Estimate = UNKNOWN
    """Mean absolute distance of the predicted mean from that of the posterior."""

    curve: Curve | None = None
    """Reliability curve."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The belief's own variance against a quantity, over the steps of one group."""

    chosen: int
    """The channel whose variance follows it best at the steps that fitted the probes."""

    rank: Estimate
    """Its rank correlation with the quantity, at these steps."""

    median: float
    """Median over the channels of that correlation."""


@dataclass(frozen=True, kw_only=True)
class VariableReport:
    """What is believed of one hidden variable."""

    name: str
    """Its name."""

    classes: Array | None
    """Its values; None for a number."""

    is_ordered: bool
    """Whether differences between its values mean anything."""

    is_logarithm: bool
    """Whether all values are logarithms of those of the task."""

    source: str
    """The source that figures show: the belief where there is one, else h."""

    measures: dict[str, dict[str, Measures]]
    """Of each source and group."""

    channels: dict[str, dict[str, Channel]]
    """Of each group, against `error`, the squared error of a linear regression on the means, and
    `posterior`, the posterior's variance; empty without a belief."""

    actions: dict[str, dict[str, ActionCurve]]
    """Of each group: actions against `mean`, `deviation`, `posterior mean` and so on."""

    samples: dict[str, dict[str, Array]]
    """Of each group, some steps in columns: `level`, the probe's `variance`, its squared `error`,
    the variance of the `posterior`, and that of the chosen `channel`."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An episode with what was believed and what could be known."""

    level: float
    """Noise level."""

    group: str
    """`trained` or `held out`."""

    action: Array
    """Actions as columns, `[T, A]`."""

    variables: dict[str, dict[str, Array]]
    """By variable: `truth`, `mean` and `deviation` of the probe and of the posterior, `[T]`."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether an agent's belief is one, and what its policy does with it."""

    env_id: str
    """Gymnasium id of the task."""

    memory: str
    """Name of the memory's class, and of its readout."""

    posterior: str | None
    """`exact posterior`, `Kalman posterior`, or None where there is no filter."""

    trained: tuple[float, ...]
    """Noise levels of training."""

    levels: tuple[float, ...]
    """All noise levels visited."""

    episodes: int
    """Episodes at each level; half of them fit the probes, the others test them."""

    seed: int
    """Seed of the first episode."""

    deterministic: bool
    """Whether the most probable actions were taken."""

    action_names: tuple[str, ...]
    """Of the action columns."""

    variables: list[VariableReport]
    """The hidden variables."""

    examples: list[Example]
    """Episodes to look at."""

    control: dict[str, Control]
    """By group; empty without a belief."""

    def groups(self) -> list[str]:
        """Return the groups of levels: those of training, and those held out if there are any."""
        return [TRAINED, HELD_OUT] if set(self.levels) - set(self.trained) else [TRAINED]

    def to_json(self, about: dict[str, Any] | None = None) -> str:
        """Return everything as JSON, with more entries before it; what is not known is null."""
        return json.dumps({"version": VERSION, **(about or {}), **_plain(self)}, allow_nan=False)

    def table(self) -> str:
        """Return the measures by variable, source and group, and the effects on the return.

        The column `off` is the mean distance from the posterior's mean; the rank correlations are
        those of the variance with the squared error, and with the posterior's variance.
        """
        about = f"{self.env_id}, {self.memory}: {self.episodes} episodes at each of "
        lines = [about + f"{len(self.levels)} noise levels"]
        for variable in self.variables:
            lines += ["", *_rows(variable, self.groups())]
        for group, control in self.control.items():
            lines += ["", f"return, levels {group}: {_text(control.baseline, '.3f')}"]
            lines += [f"  {name:34}{_text(e, '+.4f')}" for name, e in control.effects.items()]
        return "\n".join(lines)


def _rows(variable: VariableReport, groups: list[str]) -> list[str]:
    name = f"log {variable.name}" if variable.is_logarithm else variable.name
    head = f"{name:12}{'source':16}{'R2':>7}{'ECE':>7} {'interval':>14}{'2 sd':>7}"
    lines = [head + f"{'off':>7}{'rank, error':>13}{'rank, posterior':>17}"]
    for group in groups:
        for source, by_group in variable.measures.items():
            m = by_group[group]
            ece = m.calibration_error
            values = f"{_number(m.explained.value):>7}{_number(ece.value):>7} {_interval(ece):>14}"
            ranks = f"{_number(m.rank_error.value):>13}{_number(m.rank_posterior.value):>17}"
            rest = f"{_number(m.coverage.value):>7}{_number(m.distance.value):>7}{ranks}"
            lines.append(f"{group:12}{source:16}{values}{rest}")
        if group in variable.channels:
            found = variable.channels[group]
            error, posterior = (
                _number(found[name].rank.value) if name in found else "-"
                for name in ("error", "posterior")
            )
            lines.append(f"{group:12}{'chosen channel':16}{'':43}{error:>13}{posterior:>17}")
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _text(estimate: Estimate, style: str) -> str:
    value, low, high = (format(number, style) for number in estimate)
    return f"{value} [{low}, {high}]"


def _plain(value: Any) -> Any:
    """Return JSON-able data: arrays as lists, named tuples and dataclasses as objects."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
