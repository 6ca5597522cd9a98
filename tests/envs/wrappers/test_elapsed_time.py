import gymnasium
import numpy as np
import pytest
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
