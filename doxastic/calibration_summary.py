"""Calibrations of several agents in one table: what holds for a memory, not for one training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from doxastic.agents.calibration.report import POSTERIOR, Calibration, VariableReport
from doxastic.studies.tables import NONE, table


def summary(calibrations: Sequence[Calibration]) -> str:
    """Return Markdown tables of the mean over agents, with the least and the largest in brackets.

    Agents are taken together by task and memory. The calibration error is that of the probe of
    the belief (of h for a memory without one) and, beside it, that of the filter at the steps the
    agents visit; the rank correlations are those of the probe's variance, and of the belief's
    own: of the channel that was chosen on other episodes. Effects are changes of the return.
    """
    groups: dict[tuple[str, str], list[Calibration]] = {}
    for calibration in calibrations:
        groups.setdefault((calibration.env_id, calibration.memory), []).append(calibration)
    parts = []
    for (env_id, memory), found in groups.items():
        agents = f"{len(found)} agent{'s' if len(found) > 1 else ''}"
        parts += [f"### {env_id}, {memory}, {agents}", _beliefs(found)]
        if all(one.control for one in found):
            parts.append(_effects(found))
    return "\n\n".join(parts) + "\n"


def _beliefs(found: Sequence[Calibration]) -> str:
    """Return the table of what is believed, a row for every variable and group of levels."""
    rows = []
    for variable in found[0].variables:
        reports = [_variable(one, variable.name) for one in found]
        for group in found[0].groups():
            rows.append([variable.name, group, *_row(reports, group)])
    head = ["variable", "levels", "calibration error", "of the filter", "within 2 deviations"]
    ranks = ["squared error", "posterior's variance", "posterior's, own variance"]
    return table([*head, *(f"rank: {name}" for name in ranks)], rows)


def _row(reports: Sequence[VariableReport], group: str) -> list[str]:
    probed = [report.measures[report.source][group] for report in reports]
    filtered = [r.measures[POSTERIOR][group] for r in reports if POSTERIOR in r.measures]
    channels = [r.channels[group]["posterior"].rank for r in reports if _has_rank(r, group)]
    columns = [
        [m.calibration_error.value for m in probed],
        [m.calibration_error.value for m in filtered],
        [m.coverage.value for m in probed],
        [m.rank_error.value for m in probed],
        [m.rank_posterior.value for m in probed],
        [rank.value for rank in channels],
    ]
    return [_over_agents(values) for values in columns]


def _has_rank(report: VariableReport, group: str) -> bool:
    return "posterior" in report.channels.get(group, {})


def _effects(found: Sequence[Calibration]) -> str:
    """Return the table of returns and of what they lose when the belief is changed."""
    rows = []
    for group in found[0].groups():
        controls = [one.control[group] for one in found]
        rows.append(["return", group, _over_agents([c.baseline.value for c in controls])])
        for name in controls[0].effects:
            values = [control.effects[name].value for control in controls]
            rows.append([name, group, _over_agents(values, "+.3f")])
    return table(["acted on", "levels", "return, or its change"], rows)


def _variable(calibration: Calibration, name: str) -> VariableReport:
    for report in calibration.variables:
        if report.name == name:
            return report
    raise ValueError(
        f"{name} varies for one agent on {calibration.env_id} and not for another; expected the "
        "same variables. Name them with --variables, or raise --episodes."
    )


def _over_agents(values: Sequence[float], style: str = ".3f") -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return NONE
    mean = format(sum(known) / len(known), style)
    return f"{mean} [{min(known):{style}}, {max(known):{style}}]" if len(known) > 1 else mean
