"""Every task can be drawn, and its pictures show its state."""

import subprocess
import sys
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from matplotlib.figure import Figure
from matplotlib.patches import Arc

from doxastic.envs import (
    CartPole,
    LinearGaussian,
    NoisyTask,
    NumpyRandom,
    POMDPEnv,
    POMDPVectorEnv,
    rendering,
)
from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.registration import TASKS, make_task
from doxastic.envs.rendering import draw, frame
from doxastic.plotting import PALETTE

every_task = pytest.mark.parametrize("task", TASKS)
HARDEST = {
    "Autoencode": {"decks": 3},
    "Battleship": {"size": 12, "ships": (2, 3, 3, 4, 5)},
    "Concentration": {"variant": "hard"},
    "CountRecall": {"variant": "hard"},
    "HigherLower": {"decks": 3},
    "MineSweeper": {"variant": "hard"},
    "RepeatPrevious": {"variant": "hard"},
    "TMaze": {"length": 40},
}


def is_picture(image):
    return image.shape == (360, 480, 3) and image.dtype == np.uint8 and len(np.unique(image)) > 10


@every_task
def test_a_task_is_drawn_and_its_pictures_change_with_its_state(task):
    env = gymnasium.make(task, render_mode="rgb_array")
    env.reset(seed=0)
    env.action_space.seed(0)
    pictures = [env.render()]
    np.testing.assert_array_equal(env.render(), pictures[0])
    for _ in range(4):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        pictures.append(env.render())
        if terminated or truncated:
            break
    assert all(map(is_picture, pictures))
    assert np.any(pictures[0] != pictures[-1])


@every_task
def test_a_vector_draws_every_environment(task):
    env = gymnasium.make_vec(task, num_envs=2, render_mode="rgb_array")
    env.reset(seed=0)
    pictures = env.render()
    assert isinstance(pictures, tuple) and len(pictures) == 2
    assert all(map(is_picture, pictures))
    # The same states, drawn one by one.
    for row, picture in enumerate(pictures):
        state = {name: array[row : row + 1] for name, array in env.unwrapped._state.items()}
        np.testing.assert_array_equal(frame(env.unwrapped.pomdp, state), picture)


@pytest.mark.parametrize("name", HARDEST)
def test_harder_variants_are_drawn_from_start_to_end(name):
    env = POMDPEnv(TASKS[f"doxastic/{name}-v0"](**HARDEST[name]), render_mode="rgb_array")
    env.action_space.seed(1)
    env.reset(seed=1)
    assert is_picture(env.render())
    ended = False
    while not ended:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert is_picture(env.render())


@pytest.mark.parametrize("task", ["doxastic/CartPole-v0", "doxastic/Tiger-v0"])
def test_gymnasiums_checker_passes_with_a_render_mode(task):
    with warnings.catch_warnings():
        # It says so of every Box without bounds.
        warnings.simplefilter("ignore", UserWarning)
        check_env(gymnasium.make(task, render_mode="rgb_array").unwrapped)


def test_the_frames_of_physics_come_in_real_time():
    rates = {
        name: gymnasium.make(f"doxastic/{name}-v0").metadata["render_fps"]
        for name in ("CartPole", "Pendulum", "Acrobot", "LinearGaussian", "Tiger")
    }
    assert rates == {"CartPole": 50, "Pendulum": 20, "Acrobot": 5, "LinearGaussian": 10, "Tiger": 4}


def test_gymnasium_collects_pictures_where_a_list_is_asked_for():
    env = gymnasium.make("doxastic/Tiger-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(0)
    assert len(env.render()) == 2


def test_another_kind_of_noise_leaves_the_picture_of_the_state():
    noisy = gymnasium.make(
        "doxastic/CartPole-v0", noise_kind="delay", noise=2.0, render_mode="rgb_array"
    )
    noisy.reset(seed=0)
    assert is_picture(noisy.render())


def test_a_linear_system_of_another_size_is_drawn():
    task = LinearGaussian(
        dynamics=np.eye(3) * 0.9,
        control=np.ones((3, 1)),
        disturbance=np.eye(3),
        observation=np.eye(3),
        state_cost=np.eye(3),
        start=np.eye(3),
    )
    assert is_picture(frame(task, task.reset(1, NumpyRandom(np.random.default_rng(0)))))


class Counter(BatchedPOMDP):
    """A task of a user, which nobody has drawn."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)
    max_episode_steps = 3
    reward_range = (0.0, 0.0)
    noise = (0.0,)
    hidden_names = ("count", "noise")

    def reset(self, n, random):
        return {"count": np.zeros(n), "noise": self.draw_noise(n, random)}

    def step(self, state, action, random):
        count = state["count"] + action
        return {**state, "count": count}, np.zeros(len(count)), np.zeros(len(count), bool)

    def observe(self, state, random):
        return np.zeros(len(state["count"]), dtype=np.int64)

    def hidden(self, state):
        return np.stack([state["count"], state["noise"]], axis=1)


def test_a_task_without_a_drawing_shows_its_hidden_variables():
    env = POMDPEnv(Counter(), render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(np.int64(1))
    assert is_picture(before) and np.any(env.render() != before)


def test_there_is_nothing_to_draw_without_a_mode_or_before_the_reset():
    for env in (POMDPEnv(CartPole()), POMDPVectorEnv(CartPole(), 2)):
        env.reset(seed=0)
        assert env.render() is None
    for env in (
        POMDPEnv(CartPole(), render_mode="rgb_array"),
        POMDPVectorEnv(CartPole(), 2, render_mode="rgb_array"),
    ):
        with pytest.raises(ResetNeeded, match=r"nothing to draw before the first reset\(\)"):
            env.render()


def test_environments_load_without_matplotlib():
    code = "import sys, doxastic.envs; print('loaded:', *{'matplotlib', 'PIL'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "loaded:"


def test_pictures_have_the_colours_of_the_figures():
    from doxastic.envs.pictures import style

    names = ("BLUE", "VERMILION", "GREEN", "PINK", "SKY", "ORANGE", "BLACK")
    assert tuple(getattr(style, name) for name in names) == PALETTE


def drawn(task, state):
    """Return the axes on which a state was drawn."""
    axes = Figure().add_subplot()
    draw(task, axes, state)
    return axes


def words_of(axes):
    return " ".join(artist.get_text() for artist in axes.texts)


def test_the_sound_that_tiger_draws_is_on_no_side():
    task = TASKS["doxastic/Tiger-v0"]()
    state = task.reset(1, NumpyRandom(np.random.default_rng(0)))
    state["listened"] = np.array([True])
    for side in (-1.0, 1.0):
        axes = drawn(task, {**state, "tiger": np.array([side])})
        arcs = [patch for patch in axes.patches if isinstance(patch, Arc)]
        assert arcs and sum(arc.center[0] for arc in arcs) == 0
        middles = [np.deg2rad((arc.theta1 + arc.theta2) / 2) for arc in arcs]
        np.testing.assert_allclose(np.sum(np.cos(middles)), 0, atol=1e-12)
    silent = drawn(task, {**state, "listened": np.array([False])})
    assert not any(isinstance(patch, Arc) for patch in silent.patches)


@pytest.mark.parametrize(
    ("name", "kind", "level", "words"),
    [
        ("Tiger", "delay", 2.0, "wrong side in 0% of sounds"),
        ("LightDark", "delay", 3.0, "readings deviate by 0 "),
        ("LightDark", "student", 3.0, "readings deviate by 0 "),
    ],
)
def test_the_level_of_another_kind_of_noise_is_not_read_as_the_tasks_own(name, kind, level, words):
    task = make_task(f"doxastic/{name}-v0", noise_kind=kind, noise=level)
    state = task.reset(1, NumpyRandom(np.random.default_rng(0)))
    assert words in words_of(drawn(task, state)) + " "


def test_a_task_without_a_drawing_shows_constant_errors_too():
    class Measured(Counter):
        observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

        def observe(self, state, random):
            return state["count"][:, None]

    task = NoisyTask(Measured(), (0.5,), "bias")
    state = task.reset(1, NumpyRandom(np.random.default_rng(0)))
    error = state["noise/bias0"][0, 0]
    assert f"noise  0.5 bias_0  {error:.3g}" in words_of(drawn(task, state))


def test_the_kind_of_the_noise_stands_beside_its_level():
    texts = []

    def record(figure, x, y, words, **style):
        texts.append(words)
        return Figure.text(figure, x, y, words, **style)

    for arguments in ({"noise": 0.2}, {"noise_kind": "delay", "noise": 2}):
        env = gymnasium.make("doxastic/Tiger-v0", render_mode="rgb_array", **arguments)
        env.reset(seed=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rendering._canvas()[0], "text", partial(record, rendering._canvas()[0]))
            env.render()
    assert texts == ["noise 0.2", "delay 2"]
