"""A trained run inside Stable-Baselines3: by path, as a belief, and memories over windows."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation
from sb3_cases import (
    ACTIONS,
    DICT,
    DICT_WITH_IMAGE,
    IMAGE,
    OBSERVATIONS,
    assert_learns,
    random_envs,
)
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import doxastic
from doxastic.agents.agent import Agent
from doxastic.agents.config import EncoderConfig, PolicyConfig
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic
from doxastic.agents.sb3 import (
    BeliefExtractor,
    BeliefPolicy,
    BeliefRecurrentPPO,
    CnnBeliefPolicy,
    MultiInputBeliefPolicy,
    VecBelief,
    VecWindow,
)
from doxastic.memory.build import MemoryConfig, build_memory


def make_agent(observation="box", action="discrete", **memory):
    torch.manual_seed(0)
    space = observation
    if isinstance(observation, str):
        space = DICT if observation == "dict" else OBSERVATIONS[observation]
    config = MemoryConfig(**{"width": 16, "belief_size": 4, **memory})
    networks = ActorCritic(
        space, ACTIONS[action], EncoderConfig(width=8), build_memory(config, 8), PolicyConfig()
    )
    with torch.no_grad():
        # A new head would hardly tell one observation from another.
        networks.action_head.linear.weight.normal_()
        networks.normalize_value_head(3.0, 2.0)
    normalizer = ObservationNormalizer(space)
    normalizer.update(tensors(random_envs(space, ACTIONS[action], 50).reset()))
    return Agent(networks, normalizer)


def tensors(observation):
    if isinstance(observation, dict):
        return {key: torch.from_numpy(part) for key, part in observation.items()}
    return torch.from_numpy(observation)


def steps(env, number):
    """Yield observation, starts and infos of steps with random actions."""
    env.action_space.seed(0)
    yield env.reset(), np.ones(env.num_envs, bool), [{}] * env.num_envs
    for _ in range(number):
        observation, _, dones, infos = env.step([env.action_space.sample() for _ in range(3)])
        yield observation, dones, infos


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", ["box", "discrete", "multi-discrete", "dict"])
def test_the_policy_of_a_run_acts_and_values_as_the_run(observation, action):
    agent = make_agent(observation, action)
    policy_class = MultiInputBeliefPolicy if observation == "dict" else BeliefPolicy
    policy = policy_class.from_run(agent)
    env = random_envs(agent.observation_space, agent.action_space)
    state = own = None
    for seen, starts, _ in steps(env, 8):
        expected, state = agent.predict(seen, state, starts)
        action, own = policy.predict(seen, own, starts, deterministic=True)
        np.testing.assert_allclose(action, expected, atol=1e-6)
        flat = np.concatenate((own[0][0], own[1][0]), 1)[:, : state[0].shape[1]]
        np.testing.assert_allclose(flat, state[0], atol=1e-6)


def test_a_run_is_trained_further_and_keeps_its_values():
    agent = make_agent()
    env = random_envs(agent.observation_space, agent.action_space)
    model = BeliefRecurrentPPO(BeliefPolicy, env, n_steps=8, policy_kwargs={"run": agent})
    policy, observation = model.policy, tensors(env.reset())
    zeros = (torch.zeros(1, 3, policy.lstm_actor.hidden_size),) * 2
    value = policy.predict_values(observation, zeros, torch.ones(3))[:, 0]
    reset = torch.ones(3, dtype=torch.bool)
    scaled = agent.normalizer(observation)
    torch.testing.assert_close(
        value, agent.policy.value(scaled, agent.policy.initial_state(3), reset)
    )
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    model.learn(24)
    assert all(map(torch.equal, before, agent.policy.parameters())), "the run itself was changed"
    trained = policy.lstm_actor.memory.parameters()
    assert not any(map(torch.equal, agent.policy.memory.parameters(), trained))


@pytest.mark.parametrize("space", [IMAGE, DICT_WITH_IMAGE], ids=["image", "dict"])
def test_a_run_of_images_is_trained_further_although_sb3_turns_them(space):
    agent = make_agent(space)
    env = random_envs(space, agent.action_space)
    policy_class = CnnBeliefPolicy if space is IMAGE else MultiInputBeliefPolicy
    kwargs = {"run": agent}
    model = BeliefRecurrentPPO(policy_class, env, n_steps=8, batch_size=12, policy_kwargs=kwargs)
    assert model.observation_space != space, "SB3 no longer turns images: test nothing in vain"
    seen = env.reset()
    expected, state = agent.predict(seen, None, np.ones(3, bool))
    action, own = model.predict(seen, None, np.ones(3, bool), deterministic=True)
    np.testing.assert_array_equal(action, expected)
    flat = np.concatenate((own[0][0], own[1][0]), 1)[:, : state[0].shape[1]]
    np.testing.assert_allclose(flat, state[0], atol=1e-6)
    model.learn(24)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return doxastic.train(
        "sequential-test-easy",
        run_dir=tmp_path_factory.mktemp("runs") / "run",
        total_steps=2048,
        evaluation={"episodes": 4},
        progress=False,
    )


def test_a_run_folder_plugs_in_by_its_path(run, tmp_path):
    policy, agent = BeliefPolicy.from_run(run), doxastic.load(run)
    space = agent.observation_space
    rows = np.stack([space.sample() for _ in range(6)])
    expected, actual = agent.predict(rows), policy.predict(rows, deterministic=True)
    np.testing.assert_array_equal(actual[0], expected[0])
    env = random_envs(space, agent.action_space)
    assert VecBelief(env, run).reset().shape == (3, space.shape[0] + 32)
    model = RecurrentPPO(BeliefPolicy, env, n_steps=8, policy_kwargs={"run": str(run)}).learn(24)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model")
    np.testing.assert_array_equal(*(m.predict(rows)[1][0] for m in (model, loaded)))


@pytest.mark.parametrize("readout", ["moments", "precision", "learned"])
@pytest.mark.parametrize("observation", ["box", "discrete", "dict"])
def test_the_belief_beside_an_observation_is_the_agents(observation, readout):
    agent = make_agent(observation, readout=readout)
    plain = random_envs(agent.observation_space, agent.action_space)
    env = VecBelief(random_envs(agent.observation_space, agent.action_space), agent)
    state, ended = agent.initial_state(3), 0
    for (seen, starts, infos), (both, same, others) in zip(
        steps(plain, 20), steps(env, 20), strict=True
    ):
        np.testing.assert_array_equal(starts, same)
        for row in np.flatnonzero(starts):
            if infos[row]:
                final, ended = infos[row]["terminal_observation"], ended + 1
                belief = agent.belief(final, state[0][[row]])
                assert_joined(others[row]["terminal_observation"], final, belief, env)
        assert_joined(both, seen, agent.belief(seen, state, starts), env)
        state = agent.predict(seen, state, starts)[1]
    assert ended > 3


def assert_joined(both, observation, belief, env):
    expected = np.concatenate((belief.mean, belief.variance), -1)
    if isinstance(env.observation_space, spaces.Dict):
        actual = both["belief"]
        rest = both.get("observation")
        if rest is None:
            rest = {key: part for key, part in both.items() if key != "belief"}
        np.testing.assert_equal(rest, observation)
    else:
        actual = both[..., 3:]
        np.testing.assert_array_equal(both[..., :3], observation)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    one = both if np.ndim(actual) == 1 else _row(both)
    assert env.observation_space.contains(one)


def _row(batch):
    return {k: part[0] for k, part in batch.items()} if isinstance(batch, dict) else batch[0]


@pytest.mark.parametrize(("algorithm", "action"), [(SAC, "box"), (DQN, "discrete")])
def test_off_policy_algorithms_learn_on_a_frozen_belief(algorithm, action):
    agent = make_agent(action=action)
    env = VecBelief(random_envs(agent.observation_space, agent.action_space), agent)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    algorithm("MlpPolicy", env, learning_starts=20, buffer_size=200, batch_size=16).learn(60)
    assert all(map(torch.equal, before, env.agent.policy.parameters()))


@pytest.mark.parametrize("memory", ["belief", "lstm"])
@pytest.mark.parametrize(
    ("algorithm", "action", "kwargs"),
    [
        (PPO, "discrete", {"n_steps": 8, "batch_size": 12}),
        (A2C, "multi-discrete", {}),
        (SAC, "box", {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}),
        (TD3, "box", {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}),
        (DQN, "discrete", {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}),
    ],
)
def test_algorithms_without_recurrence_remember_over_a_window(algorithm, action, kwargs, memory):
    env = VecWindow(random_envs(OBSERVATIONS["box"], ACTIONS[action]), 5)
    policy_kwargs = {
        "features_extractor_class": BeliefExtractor,
        "features_extractor_kwargs": {"memory": memory, "width": 16},
    }
    assert_learns(algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, **kwargs), 36)


def test_observations_are_normalised_where_the_page_says():
    off_policy = {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}
    agent, space, action = make_agent(), OBSERVATIONS["box"], ACTIONS["discrete"]
    around = VecNormalize(VecBelief(random_envs(space, action), agent))
    DQN("MlpPolicy", around, **off_policy).learn(60)
    rewards = VecNormalize(random_envs(space, action), norm_obs=False)
    PPO("MlpPolicy", VecBelief(rewards, agent), n_steps=8, batch_size=12).learn(36)
    inside = make_vec_env("CartPole-v1", 2, wrapper_class=NormalizeObservation)
    DQN("MlpPolicy", VecWindow(inside, 5), **off_policy).learn(60)
    below = VecWindow(VecNormalize(random_envs(space, action)), 5)
    PPO("MlpPolicy", below, n_steps=8, batch_size=12).learn(36)
    # Stable-Baselines3 stores what VecNormalize saw, which is no window.
    with pytest.raises(ValueError, match="could not broadcast"):
        DQN("MlpPolicy", below, **off_policy).learn(60)


def test_a_window_holds_the_running_episode_and_nothing_else():
    plain = random_envs(OBSERVATIONS["box"], ACTIONS["discrete"])
    env = VecWindow(random_envs(OBSERVATIONS["box"], ACTIONS["discrete"]), 4)
    episodes = [[] for _ in range(3)]
    for (seen, starts, infos), (windows, _, others) in zip(
        steps(plain, 20), steps(env, 20), strict=True
    ):
        for row in range(3):
            if starts[row] and infos[row]:
                ended = [*episodes[row], infos[row]["terminal_observation"]]
                assert_window(others[row]["terminal_observation"], ended)
            episodes[row] = [*([] if starts[row] else episodes[row]), seen[row]]
            assert_window(windows[row], episodes[row])
            assert env.observation_space.contains(windows[row])


def assert_window(window, episode):
    length = min(len(episode), 4)
    np.testing.assert_array_equal(window[:, -1], [0] * (4 - length) + [1] * length)
    np.testing.assert_array_equal(window[4 - length :, :-1], episode[-length:])
    assert not window[: 4 - length].any()


@pytest.mark.parametrize("memory", ["belief", "gru", "window"])
@torch.no_grad()
def test_the_extractor_remembers_the_episode_as_the_memory_alone_does(memory):
    extractor = BeliefExtractor(spaces.Box(-1, 1, (6, 4)), memory, 16)
    windows = torch.randn(6, 6, 4)
    windows[..., -1] = (torch.arange(6) >= torch.arange(6)[:, None]).float()
    features = extractor(windows)
    for row in range(6):
        x = extractor.encoder(windows[row : row + 1, row:, :-1])
        state, no_reset = extractor.memory.initial_state(1), torch.zeros(1, 6 - row).bool()
        expected, _ = extractor.memory(x, state, no_reset)
        torch.testing.assert_close(features[row], expected[0, -1], atol=1e-5, rtol=1e-5)


def test_noise_that_depends_on_the_state_is_refused_beside_a_run():
    env = random_envs(OBSERVATIONS["box"], ACTIONS["box"])
    kwargs = {"run": make_agent(action="box")}
    with pytest.raises(ValueError, match=r"use_sde is True but a run is given.*use_sde=False"):
        RecurrentPPO(BeliefPolicy, env, use_sde=True, policy_kwargs=kwargs)


def test_what_cannot_be_combined_is_refused_with_the_remedy():
    agent, env = make_agent(), random_envs(OBSERVATIONS["discrete"], ACTIONS["discrete"])
    with pytest.raises(ValueError, match=r"observation space is Discrete\(4\).*config\.yaml"):
        VecBelief(env, agent)
    with pytest.raises(ValueError, match=r"observation space is Discrete\(4\).*config\.yaml"):
        RecurrentPPO(BeliefPolicy, env, policy_kwargs={"run": agent})
    with pytest.raises(ValueError, match="action space is MultiBinary"):
        other = random_envs(OBSERVATIONS["box"], ACTIONS["multi-binary"])
        RecurrentPPO(BeliefPolicy, other, policy_kwargs={"run": agent})
    with pytest.raises(ValueError, match="FlattenObservation, or use VecBelief"):
        VecWindow(env)
    with pytest.raises(ValueError, match="at least 1 step"):
        VecWindow(random_envs(OBSERVATIONS["box"], ACTIONS["discrete"]), 0)
    with pytest.raises(ValueError, match="Wrap the environments in VecWindow"):
        BeliefExtractor(OBSERVATIONS["box"])
    for memory in ({"kind": "gru"}, {"readout": "none"}):
        with pytest.raises(TypeError, match=r"keeps no belief\. Train one with memory\.kind: b"):
            VecBelief(env, make_agent(**memory))
