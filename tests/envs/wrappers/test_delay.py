import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import DelayObservation
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs.wrappers import Delay, VectorDelay


def test_observations_are_late_and_the_first_is_repeated():
    env = Delay(Scripted(start=4), 2)
    seen = [env.reset()[0][1], *(env.step(0)[0][1] for _ in range(5))]
    assert seen == [0, 0, 0, 1, 2, 3]
    check_wrapped(env)


def test_after_the_delay_it_is_gymnasiums_wrapper():
    ours = Delay(gymnasium.make("CartPole-v1"), 3)
    theirs = DelayObservation(gymnasium.make("CartPole-v1"), 3)
    ours.reset(seed=0), theirs.reset(seed=0)
    for step in range(8):
        a, b = ours.step(step % 2)[0], theirs.step(step % 2)[0]
        if step >= 2:
            np.testing.assert_array_equal(a, b)


def test_a_fresh_episode_knows_nothing_of_the_last_one():
    env = VectorDelay(vector_of(1, MODES[0]), 5)
    env.reset(seed=0)
    for episode, length in enumerate((3, 1, 4)):
        for _ in range(length):
            observation, *_, info = env.step(np.zeros(1, int))
        np.testing.assert_array_equal(info["final_obs"][0], [episode, 0])
        np.testing.assert_array_equal(observation[0], [episode + 1, 0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_vector_form_equals_the_single_one(mode, kind, steps):
    assert_vector_equals_single(
        lambda env: Delay(env, steps), lambda env: VectorDelay(env, steps), mode, kind=kind
    )


@pytest.mark.parametrize("steps", [-1, 0.5])
def test_what_is_no_number_of_steps_is_refused(steps):
    message = f"steps is {steps}; expected (a whole number|at least 0)"
    with pytest.raises(ValueError, match=message):
        Delay(Scripted(), steps)
    with pytest.raises(ValueError, match=message):
        VectorDelay(vector_of(2, MODES[0]), steps)
