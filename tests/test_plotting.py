"""Figures say what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from doxastic.envs import NOISE_KINDS, EnvConfig
from doxastic.experiment import Experiment
from doxastic.plotting import (
    NOISE_LEVELS,
    PALETTE,
    LearningCurve,
    Reference,
    Sweep,
    plot_learning_curves,
    plot_noise_sweep,
)
from doxastic.results import noise_kind


def _sweep(label: str = "belief", trained: tuple[float, ...] = (0.0, 0.1)) -> Sweep:
    return Sweep(
        label=label,
        noise=[0.0, 0.1, 0.2],
        mean=[1.0, 0.8, 0.4],
        low=[0.9, 0.7, 0.3],
        high=[1.0, 0.9, 0.5],
        trained=trained,
    )


def _texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    legend = axes.get_legend()
    entries = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return entries + [text.get_text() for text in axes.texts]


def test_the_axes_are_labelled_with_quantity_and_unit():
    axes = plot_noise_sweep([_sweep()], unit="m").axes[0]
    assert axes.get_xlabel() == "Test noise, standard deviation [m]"
    assert axes.get_ylabel() == "Mean return per episode"


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("flicker", "probability of a blank observation"),
        ("delay", "delay in steps"),
        ("symbol", "probability of a wrong symbol"),
    ],
)
def test_the_noise_axis_says_what_a_level_of_this_kind_is(kind, level):
    assert plot_noise_sweep([_sweep()], kind=kind).axes[0].get_xlabel() == f"Test noise, {level}"


def test_every_kind_of_noise_has_a_label_and_no_other_is_taken():
    assert set(NOISE_KINDS) < set(NOISE_LEVELS)
    with pytest.raises(ValueError, match="kind is 'flickr'; expected one of gaussian"):
        plot_noise_sweep([_sweep()], kind="flickr")


@pytest.mark.parametrize(
    ("env", "kind"),
    [
        (EnvConfig(id="doxastic/CartPole-v0"), "gaussian"),
        (EnvConfig(id="doxastic/Tiger-v0"), "symbol"),
        (EnvConfig(id="doxastic/Tiger-v0", noise=(1.0,), noise_kind="delay"), "delay"),
        (EnvConfig(id="CartPole-v1", noise=(0.5,), noise_kind="flicker"), "flicker"),
    ],
)
def test_the_noise_of_tasks_that_observe_symbols_is_no_standard_deviation(env, kind):
    assert noise_kind(Experiment(env=env)) == kind


def test_held_out_levels_are_hollow_and_the_trained_range_is_shaded():
    figure = plot_noise_sweep([_sweep()])
    faces = {
        tuple(np.asarray(line.get_xdata(), float)): line.get_markerfacecolor()
        for line in figure.axes[0].lines
        if line.get_linestyle() == "None"
    }
    assert faces == {(0.0, 0.1): PALETTE[0], (0.2,): "white"}
    assert {"level held out", "level seen", "95 % interval", "noise seen in training"} <= set(
        _texts(figure)
    )


def test_a_sweep_without_training_levels_has_nothing_held_out():
    texts = _texts(plot_noise_sweep([_sweep(trained=())]))
    assert texts == ["95 % interval"]


def test_several_runs_are_told_apart_by_colour_marker_and_name():
    figure = plot_noise_sweep([_sweep("belief"), _sweep("gru")])
    assert {"belief", "gru"} <= set(_texts(figure))
    lines = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "")]
    assert {line.get_marker() for line in lines} == {"o", "s"}


def test_references_are_drawn_and_named():
    references = [
        Reference(label="optimum", value=0.897),
        Reference(label="filter", value=[1.0, 0.9, 0.5], noise=[0.0, 0.1, 0.2]),
    ]
    assert {"optimum", "filter"} <= set(_texts(plot_noise_sweep([_sweep()], references=references)))


def test_a_single_level_can_be_drawn(tmp_path):
    sweep = Sweep(label="a", noise=[0.0], mean=[1.0], low=[1.0], high=[1.0], trained=(0.0,))
    plot_noise_sweep([sweep]).savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_the_learning_curve_leaves_out_updates_without_an_episode():
    curve = LearningCurve(label="a", steps=[10, 20, 30], returns=[np.nan, 1.0, 3.0])
    raw, mean = plot_learning_curves([curve]).axes[0].lines
    assert raw.get_xdata().tolist() == mean.get_xdata().tolist() == [20.0, 30.0]


def test_the_running_mean_of_a_learning_curve_does_not_lag():
    returns = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    curve = LearningCurve(label="a", steps=range(6), returns=returns)
    _, mean = plot_learning_curves([curve]).axes[0].lines
    expected = [1.0, 7 / 3, 31 / 5, 62 / 5, 56 / 3, 32.0]
    np.testing.assert_allclose(mean.get_ydata(), expected)


def test_nothing_to_plot_is_an_error():
    with pytest.raises(ValueError, match=r"no sweep to plot"):
        plot_noise_sweep([])
    with pytest.raises(ValueError, match=r"no episode has ended"):
        plot_learning_curves([LearningCurve(label="a", steps=[1], returns=[np.nan])])
