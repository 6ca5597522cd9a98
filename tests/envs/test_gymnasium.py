import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from doxastic.envs import (
    Acrobot,
    CartPole,
    NoisyTask,
    POMDPEnv,
    POMDPVectorEnv,
    SequentialTest,
)

IDS = ["doxastic/CartPole-v0", "doxastic/SequentialTest-v0"]


class Reach(CartPole):
    """CartPole pushed by a Box action, to test continuous actions."""

    def __init__(self):
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, state, action, random):
        return super().step(state, (action[:, 0] > 0).astype(np.int64), random)


def actions_of(env, steps, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def play(env, actions, seed=None):
    """Return everything the environment returned, flattened into a list of arrays."""
    observation, info = env.reset(seed=seed)
    seen = [observation, info["noise"]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen += [observation, reward, terminated, truncated, info["noise"]]
        seen += [info["final_obs"]] if "final_obs" in info else []
    return seen


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("previous_action", [True, False])
def test_gymnasiums_checker_passes(env_id, previous_action):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        env = gymnasium.make(env_id, previous_action=previous_action)
        check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines3s_checker_passes(env_id):
    sb3_check_env(gymnasium.make(env_id), warn=False)


@pytest.mark.parametrize("env_id", IDS)
def test_torchrls_checker_passes(env_id):
    check_env_specs(GymWrapper(gymnasium.make(env_id)))


@pytest.mark.parametrize("env_id", IDS)
def test_torchrls_checker_passes_on_the_vector_environment(env_id):
    check_env_specs(GymWrapper(gymnasium.make_vec(env_id, num_envs=3)))


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_takes_the_batched_path_with_same_step_autoreset(env_id):
    env = gymnasium.make_vec(env_id, num_envs=3, noise=0.7)
    assert isinstance(env, POMDPVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(info["noise"], [0.7] * 3)
    observation, reward, terminated, truncated, _ = env.step(np.array([1, 0, 1]))
    assert env.observation_space.contains(observation)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_episodes(env_id):
    a, b = (gymnasium.make_vec(env_id, num_envs=8) for _ in range(2))
    actions = actions_of(a, 100)
    first, second, other = play(a, actions, 7), play(b, actions, 7), play(b, actions, 8)
    assert all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("pomdp", [CartPole(), SequentialTest()])
def test_a_single_environment_equals_a_vector_of_one(pomdp):
    single, vector = POMDPEnv(pomdp), POMDPVectorEnv(pomdp, 1)
    observation, _ = single.reset(seed=3)
    batch, _ = vector.reset(seed=3)
    np.testing.assert_array_equal(batch[0], observation)
    for action in actions_of(single, 300):
        observation, reward, terminated, truncated, info = single.step(action)
        batch, rewards, ends, cuts, infos = vector.step(np.array([action]))
        assert (rewards[0], ends[0], cuts[0]) == (reward, terminated, truncated)
        if terminated or truncated:
            np.testing.assert_array_equal(infos["final_obs"][0], observation)
            assert infos["final_info"]["noise"][0] == info["noise"]
            observation, info = single.reset()
        np.testing.assert_array_equal(batch[0], observation)
        assert infos["noise"][0] == info["noise"]
        np.testing.assert_array_equal(vector.hidden()[0], single.hidden())


def test_noise_draws_do_not_depend_on_levels_or_on_other_environments():
    quiet, loud = (POMDPVectorEnv(CartPole(noise=s, observed="full"), 16) for s in (0.0, 0.01))
    actions = actions_of(quiet, 150)
    a, b = play(quiet, actions, 2), play(loud, actions, 2)
    dynamics = [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]
    observations = [x.ndim == 2 if isinstance(x, np.ndarray) else False for x in a]
    # Rewards, ends and truncations agree; only observations and levels differ.
    ends = [x for x in a if isinstance(x, np.ndarray) and x.dtype == bool]
    assert sum(x.sum() for x in ends) > 20
    for i, (same, observed) in enumerate(zip(dynamics, observations, strict=True)):
        assert same or observed or np.all(b[i] == 0.01)
    np.testing.assert_allclose(quiet.hidden()[:, :4], loud.hidden()[:, :4])

    def epsilons(level, action):
        env = POMDPVectorEnv(CartPole(noise=level, observed="velocity"), 16)
        env.reset(seed=2)
        out = []
        for _ in range(50):
            o, _, _, _, info = env.step(np.full(16, action))
            running = ~info.get("_final_obs", np.zeros(16, bool))
            out.append(np.where(running[:, None], (o[:, :2] - env.hidden()[:, 1:4:2]) / level, 0))
        return np.stack(out)

    pushed_left, pushed_right = epsilons(1.0, 0), epsilons(0.5, 1)
    both = (pushed_left != 0) & (pushed_right != 0)
    assert both.mean() > 0.5
    np.testing.assert_allclose(pushed_left[both], pushed_right[both], atol=1e-4)


def test_the_observation_carries_the_previous_action_and_the_start_flag():
    env = POMDPVectorEnv(SequentialTest(), 3)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation[:, 1:], [[0, 0, 0, 1]] * 3)
    observation, _, _, _, info = env.step(np.array([0, 1, 2]))
    np.testing.assert_array_equal(observation[:, 1:], [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(info["_final_obs"], [False, True, True])
    np.testing.assert_array_equal(info["final_obs"][1:, 1:], [[0, 1, 0, 0], [0, 0, 1, 0]])


def test_a_box_action_is_carried_raw():
    env = POMDPVectorEnv(Reach(), 2)
    env.reset(seed=0)
    observation, *_ = env.step(np.array([[0.5], [-0.25]], dtype=np.float32))
    np.testing.assert_array_equal(observation[:, 2:], [[0.5, 0], [-0.25, 0]])
    with pytest.raises(ValueError, match="in row 1; expected Box"):
        env.step(np.array([[0.5], [-1.25]], dtype=np.float32))


def test_truncation_comes_at_the_horizon_with_the_true_final_observation():
    env = POMDPVectorEnv(CartPole(horizon=4, noise=0.0, observed="full"), 5)
    env.reset(seed=0)
    for step in range(1, 9):
        before = env.hidden()
        observation, _, terminated, truncated, info = env.step(np.full(5, step % 2))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step % 4 == 0)
        if truncated.all():
            x = before[:, 0] + 0.02 * before[:, 1]
            np.testing.assert_allclose(info["final_obs"][:, 0], x, rtol=1e-6)
            np.testing.assert_array_equal(observation[:, -1], np.ones(5))
            assert np.abs(observation[:, :4]).max() <= 0.05


def test_returned_arrays_are_never_written_to_again():
    env = POMDPVectorEnv(SequentialTest(), 6)
    actions = actions_of(env, 30)
    observation, info = env.reset(seed=1)
    kept, copies = [observation, info["noise"]], [observation.copy(), info["noise"].copy()]
    for action in actions:
        *arrays, info = env.step(action)
        for array in [*arrays, *(v for v in info.values() if isinstance(v, np.ndarray))]:
            kept.append(array)
            copies.append(array.copy())
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_writing_to_returned_arrays_does_no_harm():
    a, b = POMDPVectorEnv(SequentialTest(), 6), POMDPVectorEnv(SequentialTest(), 6)
    a.reset(seed=1), b.reset(seed=1)
    for action in actions_of(a, 30):
        out_a, out_b = a.step(action), b.step(action)
        assert all(np.array_equal(x, y) for x, y in zip(out_a[:4], out_b[:4], strict=True))
        np.testing.assert_array_equal(out_a[4]["noise"], out_b[4]["noise"])
        for array in [*out_b[:4], *(v for v in out_b[4].values() if isinstance(v, np.ndarray))]:
            array[...] = 0


@pytest.mark.parametrize("pomdp", [CartPole(), SequentialTest(variant="hard")])
def test_a_restored_state_continues_bit_for_bit(pomdp):
    env = POMDPVectorEnv(pomdp, 8)
    actions = actions_of(env, 120)
    play(env, actions[:60], seed=4)
    arrays, data = env.get_state()
    data = json.loads(json.dumps(data))
    expected = [env.step(action) for action in actions[60:]]
    other = POMDPVectorEnv(pomdp, 8)
    other.set_state(arrays, data)
    for action, before in zip(actions[60:], expected, strict=True):
        after = other.step(action)
        assert all(np.array_equal(x, y) for x, y in zip(before[:4], after[:4], strict=True))
        np.testing.assert_array_equal(before[4]["noise"], after[4]["noise"])
    np.testing.assert_array_equal(env.hidden(), other.hidden())


def test_a_state_of_another_shape_is_refused():
    env = POMDPVectorEnv(CartPole(), 4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="same number of environments"):
        POMDPVectorEnv(CartPole(), 5).set_state(*env.get_state())


def test_stepping_out_of_order_is_an_error():
    single, vector = POMDPEnv(SequentialTest()), POMDPVectorEnv(SequentialTest(), 2)
    for call in (lambda: single.step(0), lambda: vector.step(np.zeros(2, int))):
        with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
            call()
    with pytest.raises(ResetNeeded, match="no hidden state"):
        vector.hidden()
    single.reset(seed=0)
    single.step(1)
    with pytest.raises(ResetNeeded, match="has ended"):
        single.step(0)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 3]), r"contains 3 in row 1; expected Discrete\(3\)"),
        (np.array([-1, 0]), "contains -1 in row 0"),
        (np.array([0.0, 1.0]), "expected integers"),
        (np.array([0]), r"has shape \(1,\); expected \(2,\)"),
    ],
)
def test_actions_outside_the_space_are_named(actions, message):
    vector = POMDPVectorEnv(SequentialTest(), 2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        vector.step(actions)


def test_a_single_action_outside_the_space_is_named():
    env = POMDPEnv(CartPole())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is 2; expected an element of Discrete\(2\)"):
        env.step(2)


def test_a_partial_reset_is_refused():
    with pytest.raises(ValueError, match="SAME_STEP"):
        POMDPVectorEnv(CartPole(), 2).reset(options={"reset_mask": np.array([True, False])})


def test_at_least_one_environment_is_needed():
    with pytest.raises(ValueError, match="num_envs is 0"):
        POMDPVectorEnv(CartPole(), 0)


def test_an_unknown_render_mode_is_refused():
    for make in (
        lambda: POMDPEnv(CartPole(), render_mode="ansi"),
        lambda: POMDPVectorEnv(CartPole(), 2, render_mode="ansi"),
    ):
        with pytest.raises(ValueError, match="render_mode is 'ansi'; expected None or one of rgb"):
            make()


def test_a_state_of_another_task_of_the_same_shapes_is_refused():
    def env_of(pomdp):
        env = POMDPVectorEnv(pomdp, 3)
        env.reset(seed=0)
        return env

    quiet = CartPole(noise=0.0)
    tasks = [CartPole(), Acrobot(), NoisyTask(quiet, (0.1,), "student"), Reach()]
    for saved in tasks:
        for other in tasks:
            if saved is other:
                env_of(other).set_state(*env_of(saved).get_state())
                continue
            with pytest.raises(ValueError, match=r"is of the task .* Restore into the same task"):
                env_of(other).set_state(*env_of(saved).get_state())


def test_a_state_that_does_not_name_its_task_is_restored():
    env, other = POMDPVectorEnv(CartPole(), 3), POMDPVectorEnv(CartPole(), 3)
    env.reset(seed=0)
    arrays, data = env.get_state()
    del data["task"]
    other.set_state(arrays, data)
    np.testing.assert_array_equal(env.hidden(), other.hidden())
