"""What every registered task keeps to; one that is added is tested here without a further line."""

import resource
import sys
import tracemalloc
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from replay import assert_numpy_equals_torch
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from doxastic.envs import (
    NOISE_KINDS,
    EnvConfig,
    NumpyRandom,
    POMDPEnv,
    POMDPVectorEnv,
    make_vector_env,
)
from doxastic.envs.registration import TASKS, make_task

LEVELS = {
    "gaussian": (0.0, 0.5),
    "student": (0.0, 0.5),
    "bias": (0.1, 0.5),
    "flicker": (0.0, 0.5),
    "delay": (0.0, 3.0),
}
every_task = pytest.mark.parametrize("task", TASKS)
both_ways = pytest.mark.parametrize("previous_action", [True, False])


def supports(task, kind):
    """Whether the observations are such that they can have noise of this kind."""
    numbers = isinstance(TASKS[task]().observation_space, spaces.Box)
    return numbers or kind in ("gaussian", "flicker", "delay")


PAIRS = [(task, kind) for task in TASKS for kind in NOISE_KINDS]
every_kind = pytest.mark.parametrize(("task", "kind"), [p for p in PAIRS if supports(*p)])
every_refusal = pytest.mark.parametrize(("task", "kind"), [p for p in PAIRS if not supports(*p)])


def noisy(task, kind):
    return make_task(task, noise_kind=kind, noise=LEVELS[kind])


class RecordedRandom(NumpyRandom):
    """Keeps what it draws."""

    def __init__(self, seed):
        super().__init__(np.random.default_rng(seed))
        self.draws = []

    def uniform(self, shape):
        self.draws.append(super().uniform(shape))
        return self.draws[-1]

    def normal(self, shape):
        self.draws.append(super().normal(shape))
        return self.draws[-1]


class RowRandom:
    """Draws again what one of N environments met, in the same order."""

    def __init__(self, draws, row, n):
        self.draws = [np.take(draw, [row], axis=draw.shape.index(n)) for draw in draws]

    def uniform(self, shape):
        draw = self.draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw

    normal = uniform


@every_task
@both_ways
def test_gymnasiums_checker_passes(task, previous_action):
    env = gymnasium.make(task, previous_action=previous_action)
    with warnings.catch_warnings():
        # It says so of every Box without bounds.
        warnings.simplefilter("ignore", UserWarning)
        check_env(env.unwrapped)


@every_task
@both_ways
def test_stable_baselines3s_checker_passes(task, previous_action):
    sb3_check_env(gymnasium.make(task, previous_action=previous_action), warn=False)


@every_task
@both_ways
def test_torchrls_checker_passes(task, previous_action):
    check_env_specs(GymWrapper(gymnasium.make(task, previous_action=previous_action)))
    vector = gymnasium.make_vec(task, num_envs=3, previous_action=previous_action)
    # One-hot Discrete observations of a vector are more than TorchRL 0.14 can do, those of
    # Gymnasium's own FrozenLake included; as categories they pass.
    check_env_specs(GymWrapper(vector, categorical_action_encoding=True))


@every_task
@both_ways
def test_the_same_seed_and_batch_size_give_the_same_episodes(task, previous_action):
    a, b = (gymnasium.make_vec(task, num_envs=5, previous_action=previous_action) for _ in "ab")
    a.action_space.seed(0)
    (x, info_x), (y, info_y) = a.reset(seed=7), b.reset(seed=7)
    endings = 0
    for _ in range(150):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(info_x["noise"], info_y["noise"])
        assert a.observation_space.contains(x)
        action = a.action_space.sample()
        x, *results_x, info_x = a.step(action)
        y, *results_y, info_y = b.step(action)
        np.testing.assert_array_equal(results_x, results_y)
        assert a.pomdp.reward_range[0] - 1e-12 <= results_x[0].min()
        assert a.pomdp.reward_range[1] + 1e-12 >= results_x[0].max()
        endings += np.count_nonzero(info_x.get("_final_obs", False))
    assert endings or a.pomdp.max_episode_steps > 150


@every_kind
def test_numpy_and_torch_agree_given_the_same_draws(task, kind):
    assert_numpy_equals_torch(noisy(task, kind), n=16, steps=15)


@every_kind
def test_vector_stepping_equals_single_stepping_given_the_same_draws(task, kind):
    pomdp, n, rows = noisy(task, kind), 37, (0, 17, 36)
    random = RecordedRandom(0)
    state = pomdp.reset(n, random)
    seen = pomdp.observe(state, random)
    replayed = [RowRandom(random.draws, row, n) for row in rows]
    singles = [pomdp.reset(1, one) for one in replayed]
    for row, one, single in zip(rows, replayed, singles, strict=True):
        np.testing.assert_array_equal(pomdp.observe(single, one), seen[row : row + 1])
    pomdp.action_space.seed(0)
    running = np.ones(n, bool)
    for _ in range(12):
        action = np.stack([pomdp.action_space.sample() for _ in range(n)])
        random.draws.clear()
        state, reward, ended = pomdp.step(state, action, random)
        seen, hidden = pomdp.observe(state, random), pomdp.hidden(state)
        for k, row in enumerate(rows):
            if not running[row]:
                continue
            one, part = RowRandom(random.draws, row, n), slice(row, row + 1)
            singles[k], reward_one, ended_one = pomdp.step(singles[k], action[part], one)
            # Linear algebra over one row and over many may round differently.
            np.testing.assert_allclose(reward_one, reward[part], rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(ended_one, ended[part])
            np.testing.assert_allclose(
                pomdp.observe(singles[k], one), seen[part], rtol=1e-12, atol=1e-12
            )
            np.testing.assert_allclose(
                pomdp.hidden(singles[k]), hidden[part], rtol=1e-12, atol=1e-12
            )
        running &= ~ended


@every_task
@both_ways
def test_a_single_environment_equals_a_vector_of_one(task, previous_action):
    pomdp = TASKS[task]()
    single = POMDPEnv(pomdp, previous_action=previous_action)
    vector = POMDPVectorEnv(pomdp, 1, previous_action=previous_action)
    observation, info = single.reset(seed=3)
    batch, infos = vector.reset(seed=3)
    single.action_space.seed(0)
    for _ in range(120):
        np.testing.assert_array_equal(batch[0], observation)
        np.testing.assert_array_equal(vector.hidden()[0], single.hidden())
        assert infos["noise"][0] == info["noise"]
        action = single.action_space.sample()
        observation, reward, terminated, truncated, info = single.step(action)
        batch, rewards, ends, cuts, infos = vector.step(np.array([action]))
        assert (rewards[0], ends[0], cuts[0]) == (reward, terminated, truncated)
        if terminated or truncated:
            np.testing.assert_array_equal(infos["final_obs"][0], observation)
            observation, info = single.reset()


@every_kind
def test_what_a_step_draws_depends_on_the_number_of_environments_alone(task, kind):
    def drawn(seed, levels):
        pomdp = make_task(task, noise_kind=kind, noise=levels)
        random = RecordedRandom(seed)
        state = pomdp.reset(6, random)
        pomdp.action_space.seed(seed)
        action = np.stack([pomdp.action_space.sample() for _ in range(6)])
        pomdp.observe(pomdp.step(state, action, random)[0], random)
        return [draw.shape for draw in random.draws]

    assert drawn(0, LEVELS[kind]) == drawn(1, LEVELS[kind][:1])


@every_kind
def test_the_drawn_level_is_in_info_and_the_state_is_left_alone(task, kind):
    pomdp = noisy(task, kind)
    env = POMDPVectorEnv(pomdp, 32)
    _, info = env.reset(seed=0)
    assert set(info["noise"]) == set(LEVELS[kind])
    state = pomdp.reset(4, NumpyRandom(np.random.default_rng(0)))
    kept = {name: array.copy() for name, array in state.items()}
    pomdp.action_space.seed(0)
    action = np.stack([pomdp.action_space.sample() for _ in range(4)])
    pomdp.step(state, action, NumpyRandom(np.random.default_rng(0)))
    pomdp.observe(state, NumpyRandom(np.random.default_rng(0)))
    assert pomdp.hidden(state).shape == (4, len(pomdp.hidden_names))
    for name, array in state.items():
        np.testing.assert_array_equal(array, kept[name])


@every_kind
def test_a_restored_state_continues_bit_for_bit(task, kind):
    pomdp = noisy(task, kind)
    env, other = POMDPVectorEnv(pomdp, 4), POMDPVectorEnv(pomdp, 4)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        env.step(env.action_space.sample())
    other.set_state(*env.get_state())
    for _ in range(20):
        action = env.action_space.sample()
        *before, info = env.step(action)
        *after, again = other.step(action)
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(info["noise"], again["noise"])
    np.testing.assert_array_equal(env.hidden(), other.hidden())


@every_refusal
def test_noise_that_symbols_cannot_have_is_refused(task, kind):
    message = f"{task} cannot have noise_kind='{kind}'.*needs a Box observation"
    with pytest.raises(ValueError, match=message):
        gymnasium.make(task, noise_kind=kind, noise=0.5)


@every_task
def test_the_nearest_id_is_suggested(task):
    misspelt = task.replace("-v0", "x-v0")
    with pytest.raises(ValueError, match=f"There is no environment.*nearest ids are {task}"):
        make_vector_env(EnvConfig(id=misspelt))


@every_task
def test_a_negative_noise_scale_is_refused(task):
    with pytest.raises(ValueError, match=r"noise is -0\.5; every level is .*finite and >= 0"):
        TASKS[task](noise=-0.5)


@every_task
def test_an_action_outside_the_space_is_refused(task):
    space = TASKS[task]().action_space
    inside = space.sample()
    wrong = np.full_like(inside, 10_000) if space.shape else np.int64(10_000)
    single, vector = gymnasium.make(task).unwrapped, gymnasium.make_vec(task, num_envs=2)
    single.reset(seed=0), vector.reset(seed=0)
    with pytest.raises(ValueError, match="expected an element of"):
        single.step(wrong)
    with pytest.raises(ValueError, match="in row 1; expected"):
        vector.step(np.stack([inside, wrong]))


@every_task
def test_stepping_before_the_start_and_after_the_end_is_refused(task):
    env = gymnasium.make(task).unwrapped
    env.action_space.seed(0)
    with pytest.raises(ResetNeeded, match=r"has not started; call reset\(\) first"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    for _ in range(10_000):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            break
    with pytest.raises(ResetNeeded, match=r"has ended; call reset\(\) first"):
        env.step(env.action_space.sample())


def play(env, steps):
    actions = [env.action_space.sample() for _ in range(64)]
    for step in range(steps):
        env.step(actions[step % 64])


@every_task
def test_stepping_allocates_nothing_that_stays(task):
    env = gymnasium.make_vec(task, num_envs=4)
    env.reset(seed=0)
    tracemalloc.start()
    try:
        play(env, 200)
        before, _ = tracemalloc.get_traced_memory()
        play(env, 800)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One small object kept at every step would be 800 times 28 bytes or more.
    assert after - before < 16_000


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.slow
@pytest.mark.timeout(900)
@every_task
def test_a_million_steps_do_not_grow_the_process(task):
    env = gymnasium.make_vec(task, num_envs=4)
    env.reset(seed=0)
    play(env, 50_000)
    before = peak_bytes()
    play(env, 1_000_000)
    # 8 bytes kept at every step would be 8 MB.
    assert peak_bytes() - before < 4_000_000
