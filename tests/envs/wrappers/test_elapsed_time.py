import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs.wrappers import ElapsedTime, VectorElapsedTime


def test_time_runs_from_zero_to_one_and_no_further():
    env = ElapsedTime(Scripted(start=4), horizon=4)
    seen = [env.reset()[0][-1], *(env.step(0)[0][-1] for _ in range(6))]
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    check_wrapped(env)


@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", 500), ("doxastic/CartPole-v0", 200)])
def test_the_horizon_is_that_of_the_environment(env_id, limit):
    for env in (
        ElapsedTime(gymnasium.make(env_id)),
        VectorElapsedTime(gymnasium.make_vec(env_id, num_envs=2)),
    ):
        env.reset(seed=0)
        action = np.zeros((2,), int) if env.action_space.shape else 0
        np.testing.assert_allclose(env.step(action)[0][..., -1], 1 / limit, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
def test_the_vector_form_equals_the_single_one(mode, kind):
    assert_vector_equals_single(
        lambda env: ElapsedTime(env, 8), lambda env: VectorElapsedTime(env, 8), mode, kind=kind
    )


def test_without_a_horizon_or_a_limit_it_is_refused():
    with pytest.raises(ValueError, match="give horizon="):
        ElapsedTime(Scripted())
    with pytest.raises(ValueError, match="give horizon="):
        VectorElapsedTime(vector_of(2, MODES[0]))


def test_a_horizon_below_one_is_refused():
    with pytest.raises(ValueError, match="horizon is 0; expected at least 1 step"):
        ElapsedTime(Scripted(), horizon=0)
    with pytest.raises(ValueError, match=r"horizon is 2.5; expected a whole number"):
        ElapsedTime(Scripted(), horizon=2.5)


@pytest.mark.parametrize("limit", [10, 1000])
@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_the_horizon_is_the_limit_that_was_asked_for_and_not_the_registered_one(mode, limit):
    env = gymnasium.make_vec(
        "CartPole-v1", num_envs=1, max_episode_steps=limit, vectorization_mode=mode
    )
    env = VectorElapsedTime(env)
    env.reset(seed=0)
    assert env.step(np.zeros(1, int))[0][0, -1] == np.float32(1 / limit)
    env.close()


@pytest.mark.parametrize(("limit", "horizon"), [(10, 10), (1000, 200)])
def test_the_horizon_is_the_first_of_two_limits(limit, horizon):
    def make():
        return gymnasium.make("doxastic/CartPole-v0", max_episode_steps=limit)

    for env in (ElapsedTime(make()), VectorElapsedTime(SyncVectorEnv([make]))):
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, int)
        assert env.step(action[()])[0].flat[-1] == np.float32(1 / horizon)
