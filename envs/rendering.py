"""Pictures of the true state of a task, for `render_mode="rgb_array"` and for figures.

Matplotlib is imported when the first picture is drawn, so that environments stay quick to load.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, State
from doxastic.envs.noisy_task import NoisyTask, task_state
from doxastic.envs.tasks.acrobot import TIME_STEP as ACROBOT_STEP
from doxastic.envs.tasks.acrobot import Acrobot
from doxastic.envs.tasks.cartpole import TIME_STEP as CART_POLE_STEP
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.linear_gaussian import TIME_STEP as LINEAR_STEP
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.pendulum import TIME_STEP as PENDULUM_STEP
from doxastic.envs.tasks.pendulum import Pendulum

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

Frame = npt.NDArray[np.uint8]

RENDER_MODES = ("rgb_array",)

# Seconds that a step of the tasks with physics stands for; the others are shown slowly.
_SECONDS = {
    Acrobot: ACROBOT_STEP,
    CartPole: CART_POLE_STEP,
    LinearGaussian: LINEAR_STEP,
    Pendulum: PENDULUM_STEP,
}
_UNHURRIED = 4

# Inches, at 100 pixels each.
_SIZE = (4.8, 3.6)


def metadata(pomdp: BatchedPOMDP) -> dict[str, Any]:
    """Return the render modes and the frames per second, real time where there is one."""
    seconds = _SECONDS.get(type(underlying(pomdp)))
    rate = _UNHURRIED if seconds is None else round(1 / seconds)
    return {"render_modes": list(RENDER_MODES), "render_fps": rate}


def check_render_mode(render_mode: str | None) -> str | None:
    """Return the render mode; raise `ValueError` if it is neither None nor a known one."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(
            f"render_mode is {render_mode!r}; expected None or one of {', '.join(RENDER_MODES)}."
        )
    return render_mode


def frame(pomdp: BatchedPOMDP, state: State, row: int = 0) -> Frame:
    """Return a picture of one environment, uint8 `[360, 480, 3]`.

    Args:
        pomdp: The task.
        state: State of N environments, in NumPy arrays.
        row: Which of them to draw.
    """
    figure, axes, canvas = _canvas()
    # Not `clear`, which makes new ticks that no picture has: a third of the time of some.
    for artist in (*axes.patches, *axes.lines, *axes.texts, *axes.collections, *axes.images):
        artist.remove()
    draw(pomdp, axes, state, row)
    figure.texts.clear()
    kind = pomdp.kind if isinstance(pomdp, NoisyTask) else "noise"
    noise = f"{kind} {float(state['noise'][row]):.3g}"
    figure.text(0.985, 0.975, noise, ha="right", va="top", fontsize=8, color="#8A8A8A")
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[:, :, :3])


def draw(pomdp: BatchedPOMDP, axes: Axes, state: State, row: int = 0) -> None:
    """Draw the true state of one environment into axes; see `frame` for the arguments."""
    task = underlying(pomdp)
    drawing = _drawings().get(type(task))
    if drawing is None:
        _draw_hidden(pomdp, axes, np.asarray(pomdp.hidden(state))[row])
        return
    # The level of another kind of noise is none of the task's own.
    own = task_state(state) if isinstance(pomdp, NoisyTask) else state
    drawing(task, axes, {name: array[row] for name, array in own.items()})


def underlying(pomdp: BatchedPOMDP) -> BatchedPOMDP:
    """Return the task without another kind of noise around it."""
    return pomdp.task if isinstance(pomdp, NoisyTask) else pomdp


def _draw_hidden(pomdp: BatchedPOMDP, axes: Axes, values: npt.NDArray[Any]) -> None:
    """List the hidden variables of a task that has no drawing of its own."""
    from doxastic.envs.pictures.style import stage, text

    names = pomdp.hidden_names
    stage(axes, (0, 4), (-2.9, 0.1))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        text(axes, 0.1, -2.8 * (i + 0.5) / len(names), f"{name}  {value:.3g}", ha="left")


@cache
def _canvas() -> tuple[Any, Axes, Any]:
    """Return figure, axes and canvas, which every picture of this process uses in turn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.03, 0.03, 0.94, 0.92)), canvas


@cache
def _drawings() -> dict[type[BatchedPOMDP], Callable[[Any, Axes, State], None]]:
    from doxastic.envs.pictures import confidence, control, games, memory
    from doxastic.envs.tasks.autoencode import Autoencode
    from doxastic.envs.tasks.battleship import Battleship
    from doxastic.envs.tasks.concentration import Concentration
    from doxastic.envs.tasks.copying import Copy
    from doxastic.envs.tasks.count_recall import CountRecall
    from doxastic.envs.tasks.higher_lower import HigherLower
    from doxastic.envs.tasks.light_dark import LightDark
    from doxastic.envs.tasks.mine_sweeper import MineSweeper
    from doxastic.envs.tasks.noisy_bandit import NoisyBandit
    from doxastic.envs.tasks.repeat_first import RepeatFirst
    from doxastic.envs.tasks.repeat_previous import RepeatPrevious
    from doxastic.envs.tasks.sequential_test import SequentialTest
    from doxastic.envs.tasks.t_maze import TMaze
    from doxastic.envs.tasks.tiger import Tiger

    return {
        Acrobot: control.acrobot,
        Autoencode: memory.autoencode,
        Battleship: games.battleship,
        CartPole: control.cart_pole,
        Concentration: games.concentration,
        Copy: memory.copying,
        CountRecall: memory.count_recall,
        HigherLower: games.higher_lower,
        LightDark: confidence.light_dark,
        LinearGaussian: control.linear_gaussian,
        MineSweeper: games.mine_sweeper,
        NoisyBandit: confidence.noisy_bandit,
        Pendulum: control.pendulum,
        RepeatFirst: memory.repeat_first,
        RepeatPrevious: memory.repeat_previous,
        SequentialTest: confidence.sequential_test,
        TMaze: memory.t_maze,
        Tiger: confidence.tiger,
    }
