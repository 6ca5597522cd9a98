import importlib

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from doxastic.envs import (
    CartPole,
    EnvConfig,
    POMDPEnv,
    POMDPVectorEnv,
    env_state,
    make_vector_env,
)

VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


def run(env, steps=20):
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for _ in range(steps):
        observation, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)


def test_own_ids_take_the_batched_path():
    env = make_vector_env(EnvConfig(kwargs={"horizon": 9}), num_envs=3, noise=(0.5,))
    assert isinstance(env, POMDPVectorEnv)
    assert (env.num_envs, env.pomdp.noise, env.pomdp.max_episode_steps) == (3, (0.5,), 9)


@pytest.mark.parametrize(
    "env_id",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "popgym-RepeatPreviousEasy-v0",
        "popgym-AutoencodeEasy-v0",
        "popgym-BattleshipEasy-v0",
        "popgym-CountRecallEasy-v0",
        "popgym-MultiarmedBanditEasy-v0",
        "popgym-NoisyPositionOnlyCartPoleEasy-v0",
        "MiniGrid-MemoryS7-v0",
    ],
)
@pytest.mark.parametrize("previous_action", [True, False])
def test_outside_environments_run_with_same_step_autoreset(env_id, previous_action):
    env = make_vector_env(EnvConfig(id=env_id, num_envs=2, previous_action=previous_action))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env_state(env) is None
    run(env)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "doxastic/CartPole-v0"])
@pytest.mark.parametrize(
    ("kind", "level"),
    [("gaussian", 0.25), ("student", 0.25), ("bias", 0.25), ("flicker", 0.25), ("delay", 2.0)],
)
def test_every_kind_of_noise_reaches_own_and_outside_environments(env_id, kind, level):
    config = EnvConfig(id=env_id, num_envs=4, noise=(level,), noise_kind=kind)
    env = make_vector_env(config)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["noise"], [level] * 4)
    run(env, 60)


def test_final_observations_are_not_overwritten_by_the_autoreset():
    env = make_vector_env(EnvConfig(id="popgym-PositionOnlyCartPoleEasy-v0", num_envs=1))
    observation, _ = env.reset(seed=0)
    while True:
        observation, _, terminated, _, info = env.step(np.array([1]))
        if terminated[0]:
            break
    assert abs(info["final_obs"][0][1]) > 0.2 > abs(observation[0, 1])
    assert (info["final_obs"][0][-1], observation[0, -1]) == (0, 1)


def test_minigrids_mission_text_is_dropped_with_a_note(caplog):
    with caplog.at_level("INFO", logger="doxastic.envs.make"):
        env = make_vector_env(EnvConfig(id="MiniGrid-MemoryS7-v0", num_envs=1))
    assert "mission" in caplog.text
    assert set(env.single_observation_space.spaces) == {
        "direction",
        "image",
        "previous_action",
        "episode_start",
    }


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Tuple([spaces.Discrete(3), VECTOR]), {"Box(5,)"}),
        (spaces.Tuple([IMAGE, VECTOR]), {"0", "1"}),
        (spaces.Tuple([spaces.Text(3), VECTOR]), {"1"}),
        (spaces.Dict(a=spaces.Tuple([VECTOR, spaces.Discrete(2)]), b=VECTOR), {"a", "b"}),
        (spaces.Dict(a=spaces.Dict(t=spaces.Text(3), v=VECTOR)), {"a"}),
    ],
)
def test_tuples_are_flattened_or_named_so_that_every_entry_can_be_encoded(space, expected):
    class Sampled(gymnasium.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    gymnasium.register("Sampled-v0", entry_point=Sampled)
    try:
        env = make_vector_env(EnvConfig(id="Sampled-v0", num_envs=2, previous_action=False))
        run(env)
    finally:
        del gymnasium.registry["Sampled-v0"]
    seen = env.single_observation_space
    names = set(seen.spaces) if isinstance(seen, spaces.Dict) else {f"Box{seen.shape}"}
    assert names == expected


def test_the_state_of_own_environments_is_saved():
    env = make_vector_env(EnvConfig(num_envs=2))
    env.reset(seed=0)
    arrays, data = env_state(env)
    assert arrays["elapsed"].shape == (2,)
    assert set(data) == {"task", "reset_random", "step_random"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id": "doxastic/CartPol-v0"}, "doxastic/CartPole-v0"),
        ({"id": "CartPoel-v1"}, "nearest ids are .*CartPole-v1"),
        ({"id": "popgym-RepeatPreviousEsy-v0"}, "popgym-RepeatPreviousEasy-v0"),
        ({"id": "no_such_package:Env-v0"}, "no_such_package"),
        (
            {"id": "doxastic/CartPole-v0", "kwargs": {"mass": 2}},
            "doxastic/CartPole-v0 rejects.*mass",
        ),
        ({"id": "CartPole-v1", "kwargs": {"mass": 2}}, "CartPole-v1 rejects.*mass"),
        ({"id": "popgym-RepeatPreviousEasy-v0", "noise": (0.1,)}, "needs a Box observation"),
    ],
)
def test_what_cannot_be_made_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        make_vector_env(EnvConfig(**{"num_envs": 2, **config}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"noise": (-0.1,)}, "must be finite and >= 0"),
        ({"noise": ()}, "non-empty"),
        ({"kwargs": {"noise": 0.1}}, "as the field noise"),
        ({"kwargs": {"noise_kind": "bias"}}, "as the field noise_kind"),
        ({"noise_kind": "flicker"}, "but noise is None; give the levels"),
        ({"noise_kind": "flicker", "noise": (1.5,)}, "at most 1"),
        ({"noise_kind": "dropout", "noise": (0.5,)}, "expected one of gaussian"),
    ],
)
def test_values_outside_their_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**fields)


def test_a_missing_extra_is_named(monkeypatch):
    def missing(name, *args):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'doxastic\[popgym\]'"):
        make_vector_env(EnvConfig(id="popgym-RepeatFirstEasy-v0"))


def test_a_dependency_that_gymnasium_misses_is_named_with_the_environment():
    def needy():
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    gymnasium.register("Needy-v0", entry_point=needy)
    try:
        with pytest.raises(ValueError, match="Needy-v0 cannot be made: Box2D is not installed"):
            make_vector_env(EnvConfig(id="Needy-v0", num_envs=1))
    finally:
        del gymnasium.registry["Needy-v0"]


def test_registering_twice_changes_nothing():
    from doxastic.envs import register_tasks

    before = dict(gymnasium.registry)
    register_tasks()
    assert gymnasium.registry == before


def test_an_own_task_behind_its_module_is_the_own_task():
    config = EnvConfig(id="doxastic.envs:doxastic/CartPole-v0", noise=(0.5,), num_envs=2)
    assert config.id == "doxastic/CartPole-v0"
    env = make_vector_env(config)
    assert isinstance(env, POMDPVectorEnv) and env.pomdp.noise == (0.5,)


@pytest.fixture
def another_id():
    """Register CartPole as a user would register a task of their own."""

    def make(**arguments):
        return POMDPEnv(CartPole(noise=0.0), **arguments)

    def loud(**arguments):
        return POMDPEnv(CartPole(noise=0.3), **arguments)

    gymnasium.register("Mine-v0", entry_point=make)
    gymnasium.register("MineBare-v0", entry_point=make, kwargs={"previous_action": False})
    gymnasium.register("MineLoud-v0", entry_point=loud)
    yield
    for name in ("Mine-v0", "MineBare-v0", "MineLoud-v0"):
        del gymnasium.registry[name]


@pytest.mark.parametrize(("name", "previous_action"), [("Mine", False), ("MineBare", True)])
def test_a_task_under_another_id_runs_where_nothing_is_added_twice(
    another_id, name, previous_action
):
    config = EnvConfig(id=f"{name}-v0", noise=(0.5,), num_envs=2, previous_action=previous_action)
    env = make_vector_env(config)
    assert env.single_observation_space.shape == (5,)
    run(env)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "Mine-v0"}, "Mine-v0 carry the previous action already; set previous_action"),
        (
            {"id": "MineLoud-v0", "previous_action": False, "noise": (0.1,)},
            r"MineLoud-v0 has noise of its own, of the levels \(0.3,\); leave noise out",
        ),
    ],
)
def test_what_a_task_under_another_id_has_already_is_not_added_again(another_id, fields, message):
    with pytest.raises(ValueError, match=message):
        make_vector_env(EnvConfig(num_envs=2, **fields))
