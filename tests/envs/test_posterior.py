"""Environments that show the exact posterior: against the references, episode by episode."""

import re

import numpy as np
import pytest

from doxastic.envs import EnvConfig, make_vector_env
from doxastic.envs.posterior import VectorPosterior
from doxastic.envs.references.episode import Categorical
from doxastic.envs.references.episode_reference import episode_reference
from doxastic.envs.references.posterior_features import posterior_features
from doxastic.envs.registration import make_task

# Episodes short enough to end many times, at different steps where the agent can end them.
TASKS = {
    "SequentialTest": {"variant": "hard", "horizon": 9},
    "Tiger": {"horizon": 11},
    "LightDark": {"horizon": 7},
    "NoisyBandit": {"arms": 3, "horizon": 8},
    "LinearGaussian": {"horizon": 6},
}
EVERY_TASK = pytest.mark.parametrize("name", TASKS)
STEPS, NUM_ENVS = 40, 5


def config(name, **fields):
    return EnvConfig(
        id=f"doxastic/{name}-v0",
        num_envs=NUM_ENVS,
        posterior=True,
        **{"kwargs": TASKS.get(name, {}), **fields},
    )


def names_of(name):
    return (*posterior_features(make_task(f"doxastic/{name}-v0", **TASKS[name])).names, "time")


def actions_of(env, steps=STEPS):
    """Return random actions, most of which keep an episode going where there is a choice."""
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(steps)]
    if env.action_space.dtype == np.int64:
        random = np.random.default_rng(3)
        return [np.where(random.random(NUM_ENVS) < 0.7, a // 3, a) for a in actions]
    return actions


def expected(reference, state):
    """Return what the columns of these names should hold."""
    *hidden, noise = reference.marginals(state)
    columns = {f"P({noise.name} = {label})": p for label, p in zip(*noise[1:3], strict=True)}
    for marginal in hidden:
        if isinstance(marginal, Categorical):
            columns[f"mean of the {'sign' if marginal.name == 'sign' else 'side'}"] = (
                2 * marginal.probability[1] - 1
            )
            continue
        for label, mean, deviation in zip(*marginal[1:4], strict=True):
            what = f"arm {label}" if marginal.name == "mean of the arm" else label
            columns[f"mean of {what}"] = mean
            columns[f"log deviation of {what}"] = np.log(deviation)
    return columns


@EVERY_TASK
def test_what_is_shown_is_the_posterior_of_every_running_episode(name):
    shown, plain = (
        make_vector_env(config(name)),
        make_vector_env(EnvConfig(**{**vars(config(name)), "posterior": False,
                                     "previous_action": False})),
    )  # fmt: skip
    references = [episode_reference(plain.pomdp) for _ in range(NUM_ENVS)]
    names, ends = names_of(name), 0
    features, _ = shown.reset(seed=4)
    observation, _ = plain.reset(seed=4)
    elapsed = np.zeros(NUM_ENVS)
    for reference, o in zip(references, observation, strict=True):
        reference.first(o)

    def check(row, seen):
        state = {k[6:]: v[[row]] for k, v in plain.get_state()[0].items() if k[:6] == "state/"}
        columns = dict(zip(names, seen, strict=True))
        for key, value in expected(references[row], state).items():
            assert columns[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
        assert columns["time"] == pytest.approx(elapsed[row] / TASKS[name]["horizon"])

    for action in actions_of(plain):
        for row in range(NUM_ENVS):
            check(row, features[row])
        features, reward, terminated, truncated, info = shown.step(action)
        observation, same, *_, told = plain.step(action)
        np.testing.assert_array_equal(reward, same)
        elapsed += 1
        for row in range(NUM_ENVS):
            if not terminated[row] | truncated[row]:
                references[row].following(action[row], observation[row])
                continue
            references[row].following(action[row], told["final_obs"][row])
            check(row, info["final_obs"][row])
            references[row].first(observation[row])
            elapsed[row], ends = 0, ends + 1
    assert ends > NUM_ENVS


def test_the_log_odds_of_the_sign_are_those_of_its_sum():
    env = make_vector_env(config("SequentialTest", noise=(2.0,)))
    plain = make_vector_env(EnvConfig(id="doxastic/SequentialTest-v0", num_envs=5, noise=(2.0,)))
    features, total = env.reset(seed=0)[0], plain.reset(seed=0)[0][:, 0].astype(float)
    for _ in range(4):
        np.testing.assert_allclose(features[:, 1], 2 * total / 4, rtol=1e-5)
        features = env.step(np.zeros(5, int))[0]
        total += plain.step(np.zeros(5, int))[0][:, 0]


@EVERY_TASK
def test_a_test_at_another_level_leaves_the_prior_as_it_was(name):
    trained = make_vector_env(config(name))
    tested = make_vector_env(config(name), noise=(0.45,))
    assert tested.single_observation_space == trained.single_observation_space
    assert tested.unwrapped.pomdp.noise == (0.45,)
    assert np.isfinite(tested.reset(seed=0)[0]).all()


@EVERY_TASK
def test_a_restored_environment_continues_bit_for_bit(name):
    env, other = make_vector_env(config(name)), make_vector_env(config(name))
    assert isinstance(env, VectorPosterior)
    env.reset(seed=1)
    actions = actions_of(env)
    for action in actions[:15]:
        env.step(action)
    other.set_state(*env.get_state())
    for action in actions[15:]:
        (one, *_), (two, *_) = env.step(action), other.step(action)
        np.testing.assert_array_equal(one, two)


@EVERY_TASK
def test_every_column_is_finite_where_the_evidence_is_overwhelming(name):
    env = make_vector_env(config(name, kwargs={}, noise=(1e-3, 0.4)))
    env.reset(seed=0)
    for _ in range(60):
        features, *_ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
        assert features.shape == (NUM_ENVS, env.single_observation_space.shape[0])
        assert np.isfinite(features).all()


def test_a_task_without_a_filter_is_answered_with_those_that_have_one():
    message = (
        "CartPole has no exact posterior; the tasks that have one are LightDark, LinearGaussian, "
        "NoisyBandit, SequentialTest, Tiger."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_vector_env(config("CartPole"))


def test_other_noise_and_other_environments_have_no_posterior():
    student = {"noise": (0.5,), "noise_kind": "student", "kwargs": {}}
    with pytest.raises(ValueError, match="LightDark is seen through student noise"):
        make_vector_env(config("LightDark", **student))
    with pytest.raises(ValueError, match="CartPole-v1 is no task of doxastic"):
        make_vector_env(EnvConfig(id="CartPole-v1", posterior=True))
    with pytest.raises(ValueError, match="needs positive levels"):
        make_vector_env(config("SequentialTest", noise=(0.0, 1.0)))


def test_a_state_of_another_posterior_is_refused_and_changes_nothing():
    env = make_vector_env(config("Tiger", noise=(0.1, 0.3)))
    env.reset(seed=0)
    kept = env.get_state()
    three = make_vector_env(config("Tiger", noise=(0.1, 0.2, 0.3)))
    plain = make_vector_env(EnvConfig(id="doxastic/Tiger-v0", num_envs=NUM_ENVS))
    for other in (three, plain):
        other.reset(seed=1)
        with pytest.raises(ValueError, match="saved posterior has arrays of shapes"):
            env.set_state(*other.get_state())
        for name, array in env.get_state()[0].items():
            np.testing.assert_array_equal(array, kept[0][name])
