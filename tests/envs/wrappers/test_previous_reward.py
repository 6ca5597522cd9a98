import numpy as np
import pytest
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs.wrappers import PreviousReward, VectorPreviousReward


def test_the_reward_stands_behind_the_vector_and_is_zero_at_first():
    env = PreviousReward(Scripted())
    seen = [env.reset()[0][-1], env.step(0)[0][-1], env.step(0)[0][-1]]
    assert seen == [0.0, 0.5, 1.0]
    check_wrapped(env)


def test_the_last_reward_is_in_the_final_observation():
    env = VectorPreviousReward(vector_of(1, MODES[0]))
    env.reset()
    for _ in range(3):
        observation, reward, *_, info = env.step(np.zeros(1, int))
    assert info["final_obs"][0][-1] == reward[0] == 1.5
    assert observation[0, -1] == 0


@pytest.mark.parametrize("kind", ["symbol", "dict", "tuple"])
def test_other_observations_have_it_under_its_name(kind):
    env = PreviousReward(Scripted(kind=kind))
    env.reset()
    observation, *_ = env.step(0)
    np.testing.assert_array_equal(observation["previous_reward"], [0.5])
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
def test_the_vector_form_equals_the_single_one(mode, kind):
    assert_vector_equals_single(PreviousReward, VectorPreviousReward, mode, kind=kind)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="already has the entries"):
        PreviousReward(PreviousReward(Scripted(kind="dict")))
