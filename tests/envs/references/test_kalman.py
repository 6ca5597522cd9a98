import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import multivariate_normal, norm

from doxastic.envs.references.kalman import (
    Gaussian,
    LinearModel,
    MixtureFilter,
    error_covariances,
    predict,
    update,
)

MODEL = LinearModel(
    dynamics=np.array([[1.0, 0.3], [-0.2, 0.9]]),
    control=np.array([[0.1], [0.5]]),
    disturbance=np.array([[0.04, 0.01], [0.01, 0.09]]),
    observation=np.array([[1.0, 0.5], [0.0, 1.0], [1.0, 0.0]]),
    start=np.array([[1.0, 0.2], [0.2, 0.5]]),
)
SCALAR = LinearModel(*(np.array([[value]]) for value in (0.9, 1.0, 0.25, 1.0, 1.0)))


def joint(model, actions, level):
    """Mean and covariance of (x_1 .. x_T, o_1 .. o_T), written out as one Gaussian."""
    size, seen, steps = model.dynamics.shape[0], model.observation.shape[0], len(actions) + 1
    mean, covariance = np.zeros((steps, size)), np.zeros((steps, size, steps, size))
    covariance[0, :, 0] = model.start
    for t in range(1, steps):
        mean[t] = model.dynamics @ mean[t - 1] + model.control @ actions[t - 1]
        for s in range(t):
            covariance[t, :, s] = model.dynamics @ covariance[t - 1, :, s]
            covariance[s, :, t] = covariance[t, :, s].T
        before = covariance[t - 1, :, t - 1]
        covariance[t, :, t] = model.dynamics @ before @ model.dynamics.T + model.disturbance
    flat = covariance.reshape(steps * size, steps * size)
    show = np.kron(np.eye(steps), model.observation)
    both = np.concatenate([np.eye(steps * size), show])
    noise = np.zeros((len(both), len(both)))
    noise[steps * size :, steps * size :] = level**2 * np.eye(steps * seen)
    return both @ mean.reshape(-1), both @ flat @ both.T + noise


def conditioned(model, actions, observations, level):
    """Mean and covariance of the last state, and the log-density of all observations."""
    mean, covariance = joint(model, actions, level)
    size, hidden = model.dynamics.shape[0], len(observations) * model.dynamics.shape[0]
    last, seen = slice(hidden - size, hidden), slice(hidden, None)
    weights = np.linalg.solve(covariance[seen, seen], covariance[seen, last]).T
    posterior = mean[last] + weights @ (np.ravel(observations) - mean[seen])
    left = covariance[last, last] - weights @ covariance[seen, last]
    density = multivariate_normal(mean[seen], covariance[seen, seen]).logpdf(np.ravel(observations))
    return posterior, left, density


def data(steps, n, model=MODEL, seed=0):
    random = np.random.default_rng(seed)
    actions = random.normal(size=(n, steps - 1, model.control.shape[1]))
    return actions, random.normal(size=(n, steps, model.observation.shape[0]))


@pytest.mark.parametrize("level", [0.3, 2.0])
def test_the_filter_equals_conditioning_of_the_joint_gaussian(level):
    actions, observations = data(steps=5, n=3)
    belief, total = Gaussian(np.zeros((3, 2)), MODEL.start), np.zeros(3)
    for t in range(5):
        belief, density = update(MODEL, belief, observations[:, t], level)
        total += density
        belief = predict(MODEL, belief, actions[:, t]) if t < 4 else belief
    for i in range(3):
        mean, covariance, density = conditioned(MODEL, actions[i], observations[i], level)
        np.testing.assert_allclose(belief.mean[i], mean, atol=1e-12)
        np.testing.assert_allclose(belief.covariance, covariance, atol=1e-12)
        assert total[i] == pytest.approx(density, abs=1e-10)


def test_the_mixture_equals_bayes_rule_over_the_joint_gaussians():
    levels, prior = (0.2, 1.0, 3.0), (0.5, 0.3, 0.2)
    actions, observations = data(steps=4, n=3)
    posterior = MixtureFilter(MODEL, levels, 3, prior)
    for t in range(4):
        posterior.update(observations[:, t])
        if t < 3:
            posterior.predict(actions[:, t])
    for i in range(3):
        parts = [conditioned(MODEL, actions[i], observations[i], level) for level in levels]
        weight = np.array(prior) * np.exp([density for _, _, density in parts])
        weight /= weight.sum()
        means = np.stack([mean for mean, _, _ in parts])
        mean = weight @ means
        second = sum(w * (c + np.outer(m, m)) for w, (m, c, _) in zip(weight, parts, strict=True))
        np.testing.assert_allclose(posterior.noise[i], weight, atol=1e-10)
        np.testing.assert_allclose(posterior.mean[i], mean, atol=1e-10)
        np.testing.assert_allclose(
            posterior.covariance[i], second - np.outer(mean, mean), atol=1e-10
        )


def test_the_mixture_equals_numerical_integration_over_the_states():
    levels, action = (0.3, 1.5), 0.7
    first, second = 0.4, -1.1
    posterior = MixtureFilter(SCALAR, levels, 1)
    posterior.update([[first]])
    posterior.predict([[action]])
    posterior.update([[second]])

    x = np.linspace(-8, 8, 1601)
    before, after = x[:, None], x[None, :]
    path = norm.pdf(before) * norm.pdf(after, 0.9 * before + action, 0.5)
    evidence, moments = [], []
    for level in levels:
        density = path * norm.pdf(first, before, level) * norm.pdf(second, after, level)
        marginal = trapezoid(density, x, axis=0)
        evidence.append(trapezoid(marginal, x))
        moments.append([trapezoid(marginal * x**k, x) for k in (1, 2)])
    mean, square = np.sum(moments, 0) / np.sum(evidence)
    np.testing.assert_allclose(posterior.noise[0], evidence / np.sum(evidence), atol=1e-9)
    assert posterior.mean[0, 0] == pytest.approx(mean, abs=1e-9)
    assert posterior.covariance[0, 0, 0] == pytest.approx(square - mean**2, abs=1e-9)


def test_a_fine_grid_of_levels_approaches_a_continuous_prior():
    def level_and_state(count):
        levels = np.linspace(0.1, 3.0, count)
        posterior = MixtureFilter(SCALAR, levels, 1)
        for o in (1.0, -2.0, 0.5):
            posterior.update([[o]])
            posterior.predict([[0.0]])
        return np.array([posterior.noise[0] @ levels, posterior.mean[0, 0]])

    exact = level_and_state(4001)
    errors = [np.abs(level_and_state(count) - exact).max() for count in (5, 20, 80)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_levels_are_told_apart_with_the_right_confidence():
    levels, n = (0.5, 1.0), 20_000
    random = np.random.default_rng(0)
    true = random.integers(0, 2, n)
    posterior = MixtureFilter(SCALAR, levels, n)
    x = random.standard_normal((n, 1))
    for _ in range(10):
        posterior.update(x + np.take(levels, true)[:, None] * random.standard_normal((n, 1)))
        posterior.predict(np.zeros((n, 1)))
        x = 0.9 * x + 0.5 * random.standard_normal((n, 1))
    said = posterior.noise[:, 1]
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)):
        some = (said > low) & (said < high)
        assert true[some].mean() == pytest.approx(said[some].mean(), abs=0.03)


@pytest.mark.parametrize(("level", "assumed"), [(0.7, 0.7), (0.2, 1.5), (2.0, 0.4)])
def test_error_covariances_equal_those_of_the_filter_as_a_linear_map(level, assumed):
    steps, seen = 4, MODEL.observation.shape[0]
    _, covariance = joint(MODEL, np.zeros((steps - 1, 1)), level)
    # The mean after all observations is linear in them: feed unit vectors.
    belief = Gaussian(np.zeros((steps * seen, 2)), MODEL.start)
    units = np.eye(steps * seen).reshape(-1, steps, seen)
    for t in range(steps):
        belief, _ = update(MODEL, belief, units[:, t], assumed)
        belief = predict(MODEL, belief, [0.0]) if t < steps - 1 else belief
    to_error = np.concatenate([np.zeros((2, 2 * (steps - 1))), np.eye(2), -belief.mean.T], axis=1)
    expected = to_error @ covariance @ to_error.T
    errors = error_covariances(MODEL, level, assumed, steps)
    np.testing.assert_allclose(errors[-1], expected, atol=1e-12)
    if level == assumed:
        np.testing.assert_allclose(errors[-1], belief.covariance, atol=1e-12)


def test_means_can_move_by_other_dynamics():
    posterior = MixtureFilter(
        SCALAR, (1.0,), 2, move=lambda mean, action: np.sin(mean) + action[:, None]
    )
    posterior.update([[1.0], [2.0]])
    before = posterior.mean
    posterior.predict([[0.5], [0.0]])
    np.testing.assert_allclose(posterior.mean, np.sin(before) + np.array([[0.5], [0.0]]))


def test_a_level_of_zero_shows_the_state_and_a_certain_observation_is_refused():
    belief = Gaussian(np.zeros((1, 1)), SCALAR.start)
    belief, _ = update(SCALAR, belief, [[0.8]], 0.0)
    assert (belief.mean[0, 0], belief.covariance[0, 0]) == (0.8, 0.0)
    with pytest.raises(ValueError, match="certain before it is made"):
        update(SCALAR, belief, [[0.8]], 0.0)
