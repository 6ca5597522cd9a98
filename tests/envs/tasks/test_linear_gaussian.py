import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import LinearGaussian, NumpyRandom

# Three states, two actions, two readings, one disturbance.
MATRICES = {
    "dynamics": [[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.7]],
    "control": [[1.0, 0.0], [0.0, 0.5], [0.2, 0.3]],
    "disturbance": [[0.1], [0.2], [0.3]],
    "observation": [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]],
    "state_cost": [[1.0, 0.1, 0.0], [0.1, 2.0, 0.0], [0.0, 0.0, 0.5]],
    "action_cost": [[0.5, 0.1], [0.1, 0.3]],
    "start": [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 2.0]],
}


def random(seed=0):
    return NumpyRandom(np.random.default_rng(seed))


def test_a_step_is_linear_and_costs_are_quadratic():
    pomdp = LinearGaussian(**MATRICES, horizon=10)
    a, b, g, q, r = (
        np.array(MATRICES[name])
        for name in ("dynamics", "control", "disturbance", "state_cost", "action_cost")
    )
    state = pomdp.reset(5, random())
    u = np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32)
    after, reward, terminated = pomdp.step(state, u, random(7))
    w = random(7).normal((5, 1))
    for i in range(5):
        x = state["x"][i]
        np.testing.assert_allclose(after["x"][i], a @ x + b @ u[i] + g @ w[i], atol=1e-13)
        assert reward[i] == pytest.approx(-(x @ q @ x + u[i] @ r @ u[i]) / 10)
    assert not terminated.any()


def test_readings_are_linear_plus_noise_of_the_hidden_scale():
    pomdp = LinearGaussian(**MATRICES, noise=(0.5, 2.0))
    state = pomdp.reset(50_000, random())
    off = pomdp.observe(state, random(3)) - state["x"] @ np.array(MATRICES["observation"]).T
    for level in (0.5, 2.0):
        some = off[state["noise"] == level]
        np.testing.assert_allclose(np.cov(some.T), level**2 * np.eye(2), atol=0.03 * level**2)


def test_the_start_has_the_covariance_of_its_factor():
    state = LinearGaussian(**MATRICES).reset(100_000, random())
    factor = np.array(MATRICES["start"])
    np.testing.assert_allclose(np.cov(state["x"].T), factor @ factor.T, atol=0.05)


def test_numpy_and_torch_agree_given_the_same_draws():
    assert_numpy_equals_torch(LinearGaussian())
    assert_numpy_equals_torch(LinearGaussian(**MATRICES))


def test_spaces_and_names_follow_the_matrices():
    env = gymnasium.make("doxastic/LinearGaussian-v0", **MATRICES, previous_action=False)
    assert env.observation_space.shape == env.action_space.shape == (2,)
    assert env.unwrapped.pomdp.hidden_names == ("x1", "x2", "x3", "noise")
    env.reset(seed=0)
    assert env.unwrapped.hidden().shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, "must be finite and >= 0"),
        ({"horizon": 0}, "at least 1 step"),
        ({"action_limit": 0}, "action_limit is 0"),
        ({"dynamics": [[1.0, 0.0]]}, r"dynamics has shape \(1, 2\); expected \(1, 1\)"),
        ({"dynamics": [[1.0, 0.0], [1.0]]}, "rows of equal length"),
        ({"control": [[1.0]]}, r"control has shape \(1, 1\); expected \(2, 1\)"),
        ({"observation": [[1.0]]}, r"expected \('any', 2\)"),
        ({"disturbance": [[1.0], [float("nan")]]}, "finite numbers"),
        ({"state_cost": [[1.0, 0.0], [0.0, -1.0]]}, "positive semi-definite"),
        ({"state_cost": [[1.0, 1.0], [0.0, 1.0]]}, "symmetric"),
        ({"action_cost": [[0.0]]}, "positive definite"),
        ({"action_cost": [[1.0, 1.0], [1.0, 1.0]], "control": [[1.0, 0.0]] * 2}, "definite"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearGaussian(**arguments)


def test_a_singular_state_cost_is_allowed():
    assert LinearGaussian(state_cost=[[0.1, 0.3], [0.3, 0.9]]).state_cost.shape == (2, 2)
