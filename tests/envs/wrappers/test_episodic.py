import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted import MODES, vector_of

from doxastic.envs import CartPole, POMDPVectorEnv
from doxastic.envs.wrappers import (
    VectorDelay,
    VectorElapsedTime,
    VectorMask,
    VectorPreviousAction,
    VectorPreviousReward,
)


def stacked(env):
    """Every wrapper that needs no random numbers, on top of one another."""
    env = VectorElapsedTime(VectorPreviousReward(VectorPreviousAction(env)), horizon=10)
    return VectorMask(VectorDelay(env, 1), [0])


@pytest.mark.parametrize("mode", MODES)
def test_what_was_returned_is_never_written_to_again(mode):
    env = stacked(vector_of(3, mode))
    observation, _ = env.reset(seed=0)
    kept, copies = [observation], [observation.copy()]
    for _ in range(25):
        observation, *_, info = env.step(env.action_space.sample())
        final = [row for row in info.get("final_obs", []) if row is not None]
        kept += [observation, *final]
        copies += [observation.copy(), *(row.copy() for row in final)]
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_wrappers_read_the_final_observations_of_our_own_vector_environments():
    env = VectorPreviousReward(POMDPVectorEnv(CartPole(horizon=3, noise=0.0), 2))
    env.reset(seed=0)
    for _ in range(3):
        observation, reward, _, truncated, info = env.step(np.zeros(2, int))
    assert truncated.all()
    for row in range(2):
        assert info["final_obs"][row].shape == observation[row].shape
        assert info["final_obs"][row][-1] == np.float32(reward[row])
    np.testing.assert_array_equal(observation[:, -2:], [[1, 0]] * 2)
    np.testing.assert_array_equal(info["final_info"]["noise"], [0, 0])


def test_text_entries_pass_through_and_are_replaced_where_episodes_start():
    class Talking(gymnasium.Env):
        observation_space = spaces.Dict(text=spaces.Text(9), x=spaces.Box(-1.0, 1.0, (1,)))
        action_space = spaces.Discrete(2)
        episode = 0

        def reset(self, *, seed=None, options=None):
            self.episode += 1
            return {"text": f"e{self.episode}", "x": np.zeros(1, np.float32)}, {}

        def step(self, action):
            seen = {"text": f"e{self.episode}", "x": np.ones(1, np.float32)}
            return seen, 1.0, action == 1, False, {}

    env = VectorPreviousReward(SyncVectorEnv([Talking] * 2, autoreset_mode=MODES[0]))
    env.reset()
    observation, *_, info = env.step(np.array([0, 1]))
    assert observation["text"] == ("e1", "e2")
    np.testing.assert_array_equal(observation["previous_reward"], [[1], [0]])
    assert info["final_obs"][1]["text"] == "e1"


def test_an_environment_that_does_not_reset_itself_is_refused():
    with pytest.raises(ValueError, match=r"needs an environment that resets itself.*SAME_STEP"):
        VectorDelay(vector_of(2, AutoresetMode.DISABLED), 1)


def test_a_partial_reset_is_refused():
    env = VectorDelay(vector_of(2, MODES[1]), 1)
    with pytest.raises(ValueError, match="Reset all or none"):
        env.reset(options={"reset_mask": np.array([True, False])})


def test_a_wrapped_environment_knows_how_it_was_made():
    from doxastic.envs.wrappers import Delay

    env = Delay(gymnasium.make("CartPole-v1"), steps=2)
    again = gymnasium.make(env.spec)
    assert isinstance(again, Delay)
    assert env.spec.additional_wrappers[-1].kwargs == {"steps": 2}


def test_a_reset_between_an_end_and_the_step_after_it_forgets_the_end():
    env = VectorElapsedTime(vector_of(1, AutoresetMode.NEXT_STEP), horizon=8)
    env.reset(seed=0)
    for _ in range(3):
        *_, terminated, truncated, _ = env.step(np.zeros(1, int))
    assert terminated[0] or truncated[0]
    times = [env.reset(seed=0)[0][0, -1]]
    times += [env.step(np.zeros(1, int))[0][0, -1] for _ in range(3)]
    assert times == [0, 0.125, 0.25, 0.375]
