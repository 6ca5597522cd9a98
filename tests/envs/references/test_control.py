import numpy as np
import pytest

from doxastic.envs import CartPole, NumpyRandom, Pendulum
from doxastic.envs.references.control import CartPoleBalancer, PendulumBalancer

EPISODES = 200
UPRIGHT = {"start_angle": 0.2, "start_speed": 0.2}


def mean_returns(balancer, assumed=None):
    """Mean return at every level of the task; `assumed` is the true level if not given."""
    return np.array(
        [
            balancer.returns(level, assumed or (level,), EPISODES, seed=0).mean()
            for level in balancer.task.noise
        ]
    )


def slope(function, point, step=1e-6):
    """Central differences, `[D, len(point)]`."""
    units = step * np.eye(len(point))
    return np.stack(
        [(function(point + unit) - function(point - unit)) / (2 * step) for unit in units], axis=1
    )


def test_the_models_are_the_slopes_of_the_physics_at_the_top():
    random = NumpyRandom(np.random.default_rng(0))
    noise = np.zeros(1)

    task = Pendulum()

    def swing(values):
        state = {"theta": values[:1], "theta_dot": values[1:2], "noise": noise}
        state, _, _ = task.step(state, values[None, 2:], random)
        return np.concatenate([state["theta"], state["theta_dot"]])

    model = PendulumBalancer(task).model
    expected = np.concatenate([model.dynamics, model.control], axis=1)
    np.testing.assert_allclose(slope(swing, np.zeros(3)), expected, atol=1e-8)

    cart = CartPole()

    def push(values, action=1):
        state = {"physics": values[None], "noise": noise}
        return cart.step(state, np.array([action]), random)[0]["physics"][0]

    model = CartPoleBalancer(cart).model
    right, left = push(np.zeros(4)), push(np.zeros(4), 0)
    np.testing.assert_allclose((right - left)[:, None] / 20, model.control, atol=1e-12)
    both = (slope(push, np.zeros(4)) + slope(lambda x: push(x, 0), np.zeros(4))) / 2
    np.testing.assert_allclose(both, model.dynamics, atol=1e-8)


@pytest.mark.parametrize("observed", ["position", "full"])
def test_without_noise_the_cart_pole_stands_to_the_horizon(observed):
    balancer = CartPoleBalancer(CartPole(observed=observed, noise=0.0))
    np.testing.assert_allclose(balancer.returns(0.0, (0.0,), 200, seed=0), 1.0)


@pytest.mark.parametrize("observed", ["position", "velocity", "full"])
def test_without_noise_the_pendulum_stays_up(observed):
    balancer = PendulumBalancer(Pendulum(observed=observed, noise=0.0, **UPRIGHT))
    assert balancer.returns(0.0, (0.0,), 200, seed=0).min() > 0.99


def test_returns_of_the_noisy_cart_pole_are_the_published_ones():
    balancer = CartPoleBalancer(CartPole())
    returns = mean_returns(balancer, balancer.task.noise)
    np.testing.assert_allclose(returns, [1.0, 0.99, 0.65, 0.39], atol=0.04)


def test_knowing_the_noise_of_the_sensors_is_worth_little_here():
    for balancer in (CartPoleBalancer(CartPole()), PendulumBalancer(Pendulum(**UPRIGHT))):
        known = mean_returns(balancer).mean()
        posterior = mean_returns(balancer, balancer.task.noise).mean()
        fixed = mean_returns(balancer, (0.2,)).mean()
        assert posterior == pytest.approx(known, abs=0.01)
        assert fixed == pytest.approx(known, abs=0.02)


def test_assuming_far_too_little_noise_costs_return():
    balancer = CartPoleBalancer(CartPole())
    assert mean_returns(balancer, (0.01,)).mean() < mean_returns(balancer).mean() - 0.02
