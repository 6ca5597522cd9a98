import numpy as np
import pytest
import torch
from gymnasium import spaces

from doxastic.envs import (
    Autoencode,
    Battleship,
    CartPole,
    Concentration,
    CountRecall,
    HigherLower,
    LightDark,
    MineSweeper,
    Pendulum,
    POMDPEnv,
    POMDPVectorEnv,
    RepeatFirst,
    RepeatPrevious,
    TorchRandom,
)
from doxastic.envs.observations import ObservationLayout
from doxastic.envs.registration import TASKS

SYMBOLS = {
    env_id: task
    for env_id, task in TASKS.items()
    if not isinstance(task().observation_space, spaces.Box)
}


@pytest.mark.parametrize("env_id", SYMBOLS)
def test_the_names_of_hidden_and_the_range_of_rewards_hold(env_id):
    pomdp = TASKS[env_id]()
    env = POMDPVectorEnv(pomdp, 8)
    env.reset(seed=0), env.action_space.seed(0)
    assert env.hidden().shape == (8, len(pomdp.hidden_names))
    assert len(set(pomdp.hidden_names)) == len(pomdp.hidden_names)
    low, high = pomdp.reward_range
    for _ in range(120):
        reward = env.step(env.action_space.sample())[1]
        assert low <= reward.min() <= reward.max() <= high


@pytest.mark.parametrize("env_id", SYMBOLS)
def test_symbols_are_int64_and_rewards_of_the_streams_dtype_in_torch(env_id):
    pomdp, random = TASKS[env_id](), TorchRandom(torch.Generator().manual_seed(0), torch.float32)
    state = pomdp.reset(8, random)
    assert pomdp.observe(state, random).dtype == torch.int64
    action = torch.from_numpy(np.stack([pomdp.action_space.sample()] * 8))
    state, reward, terminated = pomdp.step(state, action, random)
    assert (reward.dtype, terminated.dtype) == (torch.float32, torch.bool)
    assert pomdp.observe(state, random).dtype == torch.int64
    assert pomdp.hidden(state).dtype == torch.float32


def test_a_symbol_and_the_action_after_it_are_one_hot():
    env = POMDPVectorEnv(RepeatFirst(), 5)
    first, _ = env.reset(seed=0)
    suit = env.hidden()[:, 0].astype(int)
    np.testing.assert_array_equal(first, np.hstack([np.eye(4)[suit], [[0, 0, 0, 0, 1]] * 5]))
    action = np.array([0, 1, 2, 3, 3])
    observation, *_ = env.step(action)
    suit = env.hidden()[:, 1].astype(int)
    expected = np.hstack([np.eye(4)[suit], np.eye(4)[action], np.zeros((5, 1))])
    np.testing.assert_array_equal(observation, expected)
    assert observation.dtype == np.float32


def test_several_symbols_are_one_hot_side_by_side():
    symbols = POMDPVectorEnv(CountRecall(kind="suits"), 6, previous_action=False)
    vectors = POMDPVectorEnv(CountRecall(kind="suits"), 6)
    symbols.reset(seed=0), vectors.reset(seed=0)
    action = np.array([0, 13, 1, 2, 3, 4])
    (pair, *_), (vector, *_) = symbols.step(action), vectors.step(action)
    assert (pair.dtype, pair.shape) == (np.int64, (6, 2))
    parts = [np.eye(4)[pair[:, 0]], np.eye(4)[pair[:, 1]], np.eye(14)[action], np.zeros((6, 1))]
    np.testing.assert_array_equal(vector, np.hstack(parts))


def test_several_symbols_of_an_action_are_one_hot_side_by_side():
    env = POMDPVectorEnv(MineSweeper(), 2)
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first, [[1, 0, 0] + [0] * 8 + [1]] * 2)
    observation, *_, info = env.step(np.array([[0, 3], [2, 1]]))
    last = np.where(
        info.get("_final_obs", np.zeros(2, bool))[:, None], info.get("final_obs", 0), observation
    )
    np.testing.assert_array_equal(last[:, 3:7], [[1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(last[:, 7:], [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])


@pytest.mark.parametrize("nvec", [[5], [5, 2], [[2, 3], [4, 5]]])
def test_actions_of_any_shape_of_multi_discrete_are_one_hot(nvec):
    pomdp = CartPole()
    pomdp.action_space = spaces.MultiDiscrete(nvec)
    layout, highest = ObservationLayout(pomdp, True), pomdp.action_space.nvec - 1
    actions = layout.checked_actions(np.stack([highest, 0 * highest]), 2)
    parts = layout.following(np.zeros((2, 2)), actions)[:, 2:-1]
    sizes = np.ravel(nvec)
    np.testing.assert_array_equal(parts[0], np.concatenate([np.eye(k)[-1] for k in sizes]))
    np.testing.assert_array_equal(parts[1], np.concatenate([np.eye(k)[0] for k in sizes]))
    with pytest.raises(ValueError, match="in row 1"):
        layout.checked_actions(np.stack([highest, highest + (sizes.max() == highest + 1)]), 2)


@pytest.mark.parametrize(
    ("pomdp", "space", "size"),
    [
        (RepeatPrevious(), spaces.Discrete(4), 4 + 4 + 1),
        (Autoencode(), spaces.MultiDiscrete([2, 4]), 6 + 4 + 1),
        (Battleship(), spaces.Discrete(2), 2 + 16 + 1),
        (Concentration(variant="hard"), spaces.MultiDiscrete([14] * 52), 14 * 52 + 52 + 1),
    ],
)
def test_spaces_are_the_tasks_own_or_a_box_of_zeros_and_ones(pomdp, space, size):
    assert ObservationLayout(pomdp, previous_action=False).space == space
    box = spaces.Box(0.0, 1.0, (size,), np.float32)
    assert ObservationLayout(pomdp, previous_action=True).space == box


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([[0, 0], [0, 8]]), r"contains \[0 8\] in row 1; expected MultiDiscrete"),
        (np.array([[-1, 0], [0, 0]]), r"contains \[-1  0\] in row 0"),
        (np.array([[0.0, 0.0], [1.0, 1.0]]), "expected integers"),
        (np.array([0, 1]), r"has shape \(2,\); expected \(2, 2\)"),
    ],
)
def test_actions_outside_a_multi_discrete_space_are_named(actions, message):
    env = POMDPVectorEnv(Battleship(), 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)


@pytest.mark.parametrize(
    ("attribute", "space"),
    [
        ("observation_space", spaces.Discrete(3, start=1)),
        ("observation_space", spaces.Box(0.0, 1.0, (2, 2))),
        ("observation_space", spaces.MultiDiscrete([[2, 2], [2, 2]])),
        ("observation_space", spaces.MultiBinary(2)),
        ("action_space", spaces.MultiDiscrete([2, 2], start=[0, 1])),
        ("action_space", spaces.MultiBinary(2)),
    ],
)
def test_other_spaces_of_a_task_are_refused(attribute, space):
    pomdp = CartPole()
    setattr(pomdp, attribute, space)
    with pytest.raises(ValueError, match=f"The {attribute.replace('_', ' ')} of CartPole is"):
        POMDPEnv(pomdp)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64])
@pytest.mark.parametrize(
    ("pomdp", "actions"),
    [
        (HigherLower(), [[1, 1], [0, 1], [1, 0]]),
        (Concentration(), [[0, 51], [1, 2], [2, 0], [51, 1]]),
        (Battleship(size=12), [[[11, 11], [0, 11]], [[2, 7], [11, 0]]]),
    ],
)
def test_what_an_action_does_does_not_depend_on_its_type_of_integer(pomdp, actions, dtype):
    def played(env, steps):
        env.reset(seed=0)
        return [part for action in steps for part in (*env.step(action)[:4], env.hidden())]

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    wide, narrow = np.array(actions, np.int64), np.array(actions, dtype)
    vectors, singles = POMDPVectorEnv(pomdp, 2), POMDPEnv(pomdp)
    assert same(played(vectors, wide), played(vectors, narrow))
    assert same(played(singles, wide[:, 1]), played(singles, narrow[:, 1]))


@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 0.3), (np.float16, 0.3), (np.int8, 1)])
@pytest.mark.parametrize("pomdp", [Pendulum(), LightDark(speed=0.7)])
def test_numbers_of_any_type_within_the_bounds_are_actions_of_a_box(pomdp, dtype, value):
    action = np.full(pomdp.action_space.shape, value, dtype)
    single, wide, vector = POMDPEnv(pomdp), POMDPEnv(pomdp), POMDPVectorEnv(pomdp, 1)
    for env in (single, wide, vector):
        env.reset(seed=0)
    observation, reward, *_ = single.step(action)
    observations, rewards, *_ = vector.step(action[None])
    np.testing.assert_array_equal(observations[0], observation)
    assert rewards[0] == reward == wide.step(action.astype(np.float64))[1]


@pytest.mark.parametrize(
    "action", [[0.5], [0.5, 2.0], [0.5, np.nan], ["a", "b"], [[0.5, 0.5]], [True, False], None]
)
def test_what_is_no_action_of_a_box_is_named_by_one_environment_and_by_many(action):
    single, vector = POMDPEnv(LightDark()), POMDPVectorEnv(LightDark(), 1)
    single.reset(seed=0), vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; expected an element of Box\(-1.0, 1.0"):
        single.step(action)
    with pytest.raises(ValueError, match=r"^actions "):
        vector.step([action])


@pytest.mark.parametrize("action", [2, -1, 0.0, np.float32(1), "0", [0], None, np.uint64(2**63)])
def test_what_is_no_symbol_is_named(action):
    env = POMDPEnv(HigherLower())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; expected an element of Discrete\(2\)"):
        env.step(action)


def test_the_row_that_is_outside_a_box_is_named():
    env = POMDPVectorEnv(Pendulum(), 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"contains \[9.\] in row 2; expected Box"):
        env.step(np.array([[0.5], [0.1], [9.0]]))
