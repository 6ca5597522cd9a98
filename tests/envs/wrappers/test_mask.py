import gymnasium
import numpy as np
import pytest
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs.wrappers import Mask, VectorMask


def test_hidden_indices_leave_the_vector_and_its_space():
    env = Mask(Scripted(start=7), hidden=[0])
    assert env.observation_space.shape == (1,)
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, [0])
    np.testing.assert_array_equal(env.step(0)[0], [1])
    check_wrapped(env)


def test_hidden_names_leave_the_dict():
    env = Mask(Scripted(kind="dict"), hidden=["v"])
    observation, _ = env.reset()
    assert set(observation) == set(env.observation_space.spaces) == {"s"}
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "hidden"), [("vector", [1]), ("dict", ["s"])])
def test_the_vector_form_equals_the_single_one(mode, kind, hidden):
    assert_vector_equals_single(
        lambda env: Mask(env, hidden), lambda env: VectorMask(env, hidden), mode, kind=kind
    )


@pytest.mark.parametrize(
    ("kind", "hidden", "message"),
    [
        ("vector", [2], r"hidden is \[2\]; expected some, but not all, of the entries \[0, 1\]"),
        ("vector", [0, 1], "but not all"),
        ("vector", [], "expected some"),
        ("dict", ["w"], r"of the entries \['v', 's'\]"),
        ("symbol", [0], "FlattenObservation first"),
    ],
)
def test_what_cannot_be_hidden_is_named(kind, hidden, message):
    with pytest.raises(ValueError, match=message):
        Mask(Scripted(kind=kind), hidden)
    with pytest.raises(ValueError, match=message):
        VectorMask(vector_of(2, MODES[0], kind=kind), hidden)


@pytest.mark.parametrize("hidden", [[0], [0, 2]])
def test_indices_may_be_an_array(hidden):
    env = Mask(gymnasium.make("CartPole-v1"), np.array(hidden))
    listed = Mask(gymnasium.make("CartPole-v1"), hidden)
    np.testing.assert_array_equal(env.reset(seed=0)[0], listed.reset(seed=0)[0])
