import gymnasium
import numpy as np
import pytest
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs.wrappers import Flicker, VectorFlicker


def test_observations_are_blanked_as_often_as_asked():
    env = VectorFlicker(vector_of(200, MODES[0], kind="symbol"), 0.25)
    env.reset(seed=0)
    # A blank symbol is 3, which the first step of an episode shows anyway: 4 is seen or dropped.
    seen = env.step(np.zeros(200, int))[0]
    shown = VectorFlicker(vector_of(200, MODES[0], kind="symbol"), 0.0)
    shown.reset(seed=0)
    clean = shown.step(np.zeros(200, int))[0]
    assert set(np.unique(seen)) == {3, 4}
    assert np.mean(seen[clean == 4] == 3) == pytest.approx(0.25, abs=0.1)


def test_blanks_are_drawn_anew_at_every_step():
    env = Flicker(gymnasium.make("CartPole-v1"), 0.5)
    first, _ = env.reset(seed=0)
    blank = [not first.any()]
    for step in range(8):
        blank.append(not env.step(step % 2)[0].any())
    assert 0 < sum(blank) < len(blank)


def test_the_same_seed_gives_the_same_blanks():
    env = Flicker(gymnasium.make("CartPole-v1"), 0.5)
    check_wrapped(env)
    runs = [[env.reset(seed=3)[0], *(env.step(i % 2)[0] for i in range(9))] for _ in range(2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
def test_a_vector_of_one_equals_the_single_form(kind):
    assert_vector_equals_single(
        lambda env: Flicker(env, 0.5), lambda env: VectorFlicker(env, 0.5), MODES[0], n=1, kind=kind
    )


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), True, "0.1"])
def test_a_probability_outside_its_range_is_refused(probability):
    message = f"probability is {probability!r}; expected a number from 0 to 1"
    with pytest.raises(ValueError, match=message):
        Flicker(Scripted(), probability)
    with pytest.raises(ValueError, match=message):
        VectorFlicker(vector_of(2, MODES[0]), probability)


def test_stacked_flickers_are_independent():
    env = gymnasium.make_vec("CartPole-v1", num_envs=64)
    env = VectorFlicker(VectorFlicker(env, 0.5), 0.5)
    env.reset(seed=1), env.action_space.seed(1)
    blank = [(env.step(env.action_space.sample())[0] == 0).all(1) for _ in range(60)]
    assert np.mean(blank) == pytest.approx(0.75, abs=0.03)
