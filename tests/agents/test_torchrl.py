import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, InitTracker, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.agents.torchrl import MemoryModule, policy_module, value_module
from doxastic.memory.baselines import GRUMemory, NoMemory
from doxastic.memory.belief import BeliefMemory

BATCH, TIME, INPUT, HIDDEN = 4, 12, 5, 6


class Walk(gym.Env):
    """A random walk that terminates far out and truncates after seven steps."""

    observation_space = spaces.Box(-10, 10, (2,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal(size=2)
        return self.place.astype("f4"), {}

    def step(self, action):
        self.steps += 1
        self.place = self.place + 0.3 * (action - 1) + self.np_random.normal(size=2)
        out = bool(np.abs(self.place).max() > 4)
        return np.clip(self.place, -10, 10).astype("f4"), 1.0, out, self.steps == 7, {}


class Rooms(Walk):
    """The same walk, with observations in a dict."""

    observation_space = spaces.Dict(
        {"place": Walk.observation_space, "room": spaces.MultiBinary(2)}
    )

    def reset(self, *, seed=None, options=None):
        place, info = super().reset(seed=seed)
        return {"place": place, "room": np.ones(2, "i1")}, info

    def step(self, action):
        place, *rest = super().step(action)
        return {"place": place, "room": (place > 0).astype("i1")}, *rest


def make_env(num_envs=BATCH, seed=0, env_class=Walk):
    vector = SyncVectorEnv([env_class] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymWrapper(vector, categorical_action_encoding=True)
    env.set_seed(seed)
    return env


def make_policy(memory=None, env_class=Walk):
    torch.manual_seed(0)
    memory = memory or GRUMemory(16, HIDDEN)
    policy = ActorCritic(
        env_class.observation_space,
        env_class.action_space,
        EncoderConfig(width=16),
        memory,
        PolicyConfig(),
    )
    torch.nn.init.normal_(policy.action_head.linear.weight)
    return policy


def make_module(**kwargs):
    torch.manual_seed(0)
    return MemoryModule(GRUMemory(INPUT, HIDDEN), in_key="x", out_key="y", **kwargs)


def make_data(zero_restarts):
    """Random inputs and stored states; zeros where an episode starts, as rollouts have them."""
    generator = torch.Generator().manual_seed(1)
    is_init = torch.rand(BATCH, TIME, 1, generator=generator) < 0.3
    state = torch.randn(BATCH, TIME, HIDDEN, generator=generator)
    if zero_restarts:
        state = torch.where(is_init, torch.zeros(()), state)
    x = torch.randn(BATCH, TIME, INPUT, generator=generator)
    return TensorDict({"x": x, "memory_state": state, "is_init": is_init}, [BATCH, TIME])


def collect(policy, frames, env_class=Walk, **kwargs):
    collector = Collector(
        make_env(env_class=env_class),
        policy_module(policy),
        frames_per_batch=frames,
        total_frames=frames,
        auto_register_policy_transforms=True,
        **kwargs,
    )
    (data,) = list(collector)
    collector.shutdown()
    return data


def test_steps_equal_the_sequence_with_random_restarts():
    module, data = make_module(), make_data(zero_restarts=True)
    with set_recurrent_mode(True):
        sequence = module(data.clone())["y"]
    state = data["memory_state"][:, 0]
    for t in range(TIME):
        td = data[:, t].clone().set("memory_state", state)
        if t == 0:
            # A sequence may start anywhere: its first stored state counts, restart or not.
            td["is_init"].zero_()
        with set_recurrent_mode(False):
            td = module(td)
        torch.testing.assert_close(td["y"], sequence[:, t])
        state = td["next", "memory_state"]


@pytest.mark.parametrize("zero_restarts", [True, False])
def test_every_restart_loads_the_state_stored_there(zero_restarts):
    module, data = make_module(), make_data(zero_restarts)
    with set_recurrent_mode(True):
        out = module(data.clone())
    for b in range(BATCH):
        state = data["memory_state"][b, :1]
        for t in range(TIME):
            if data["is_init"][b, t]:
                state = data["memory_state"][b, t : t + 1]
            no_reset = torch.zeros(1, 1, dtype=torch.bool)
            y, state = module.memory(data["x"][b, None, t : t + 1], state, no_reset)
            torch.testing.assert_close(out["y"][b, t], y[0, 0])
        torch.testing.assert_close(out["next", "memory_state"][b, -1], state[0])


@pytest.mark.parametrize("zero_restarts", [True, False])
def test_gradients_flow_to_inputs_and_parameters_in_both_ways_of_restarting(zero_restarts):
    module, data = make_module(), make_data(zero_restarts)
    data["x"].requires_grad_()
    with set_recurrent_mode(True):
        module(data)["y"].square().sum().backward()
    assert (data["x"].grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_any_number_of_batch_dimensions_is_taken():
    module, data = make_module(), make_data(zero_restarts=False)
    with set_recurrent_mode(True):
        expected = module(data.clone())["y"]
        torch.testing.assert_close(module(data.reshape(2, 2, TIME))["y"].flatten(0, 1), expected)
        torch.testing.assert_close(module(data[1])["y"], expected[1])
    step = module(data[0, 0])
    assert step["y"].shape == (HIDDEN,) and step["next", "memory_state"].shape == (HIDDEN,)
    assert module(data)["y"].shape == (BATCH, TIME, HIDDEN)


def test_the_mode_is_that_of_the_context_or_else_the_default():
    module, recurrent = make_module(), make_module(default_recurrent_mode=True)
    assert (module.recurrent_mode, recurrent.recurrent_mode) == (False, True)
    with set_recurrent_mode(True):
        assert module.recurrent_mode
    with set_recurrent_mode(False):
        assert not recurrent.recurrent_mode


def test_stored_next_states_inside_a_sequence_are_kept():
    module, data = make_module(), make_data(zero_restarts=True)
    stored = torch.randn(BATCH, TIME, HIDDEN)
    with set_recurrent_mode(True):
        alone = module(data.clone())
        beside = module(data.clone().set(("next", "memory_state"), stored))
    assert not alone["next", "memory_state"][:, :-1].any()
    torch.testing.assert_close(beside["next", "memory_state"][:, :-1], stored[:, :-1])
    last = alone["next", "memory_state"][:, -1]
    torch.testing.assert_close(beside["next", "memory_state"][:, -1], last)


def test_the_next_state_is_carried_by_step_mdp():
    module = make_module(state_key=("agent", "memory"))
    data = make_data(zero_restarts=True)[:, 0].clone()
    data.rename_key_("memory_state", ("agent", "memory"))
    following = step_mdp(module(data))
    assert following["agent", "memory"].shape == (BATCH, HIDDEN)


@pytest.mark.parametrize(
    ("key", "remedy"), [("memory_state", "make_tensordict_primer"), ("is_init", "InitTracker")]
)
def test_a_missing_transform_is_an_error_that_names_it(key, remedy):
    with pytest.raises(KeyError, match=remedy):
        make_module()(make_data(zero_restarts=True).exclude(key))


def test_a_sequence_without_a_time_dimension_is_refused():
    with set_recurrent_mode(True), pytest.raises(ValueError, match="no batch dimension"):
        make_module()(make_data(zero_restarts=True)[0, 0])


def test_the_primer_and_the_init_tracker_keep_the_environment_specs_true():
    module = MemoryModule(GRUMemory(2, HIDDEN), in_key="observation", out_key="y")
    env = make_env().append_transform(InitTracker())
    env = env.append_transform(module.make_tensordict_primer())
    check_env_specs(env)
    assert env.reset()["memory_state"].shape == (BATCH, HIDDEN)


@pytest.mark.parametrize(
    "memory", [GRUMemory(16, HIDDEN), BeliefMemory(16, 16), NoMemory(16, 16)], ids=type
)
def test_torchrl_collects_with_states_that_are_carried_and_cleared(memory):
    policy = make_policy(memory)
    data = collect(policy, BATCH * 30)
    assert data.batch_size == (BATCH, 30)
    done = data["next", "done"].squeeze(-1)
    assert done[:, :-1].any()
    torch.testing.assert_close(data["is_init"][:, 1:].squeeze(-1), done[:, :-1])
    state, following = data["memory_state"], data["next", "memory_state"]
    carried = torch.where(done[:, :-1, None], torch.zeros(()), following[:, :-1])
    torch.testing.assert_close(state[:, 1:], carried)


@pytest.mark.parametrize("env_class", [Walk, Rooms])
def test_the_loss_sees_the_log_probs_of_the_rollout(env_class):
    policy = make_policy(env_class=env_class)
    data = collect(policy, BATCH * 30, env_class)
    with set_recurrent_mode(True), torch.no_grad():
        distribution = policy_module(policy).get_dist(data.clone())
    log_prob = distribution.log_prob(data["action"])
    torch.testing.assert_close(log_prob, data["log_prob"], atol=1e-5, rtol=1e-5)


def test_rollouts_follow_the_actor_critic_acting_step_by_step():
    policy = make_policy()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        data = collect(policy, BATCH * 30, exploration_type=ExplorationType.DETERMINISTIC)
    state = policy.initial_state(BATCH)
    for t in range(30):
        action, log_prob, _, state = policy.act(
            data["observation"][:, t], state, data["is_init"][:, t, 0], deterministic=True
        )
        torch.testing.assert_close(action, data["action"][:, t])
        torch.testing.assert_close(log_prob, data["log_prob"][:, t], atol=1e-5, rtol=1e-5)


def test_next_values_of_gae_equal_those_of_exact_stepping():
    policy = make_policy()
    policy.normalize_value_head(mean=3.0, std=2.0)
    data = collect(policy, BATCH * 40)
    assert data["next", "truncated"].any() and data["next", "terminated"].any()
    gae = GAE(
        gamma=0.99, lmbda=0.95, value_network=value_module(policy), shifted=False,
        deactivate_vmap=True,
    )  # fmt: skip
    with set_recurrent_mode(True), torch.no_grad():
        out = gae(data.clone())
    no_reset = torch.zeros(BATCH, dtype=torch.bool)
    for t in range(40):
        observation, state = data["observation"][:, t], data["memory_state"][:, t]
        value = policy.value(observation, state, data["is_init"][:, t, 0])
        torch.testing.assert_close(out["state_value"][:, t, 0], value, atol=1e-5, rtol=1e-5)
        following = data["next", "observation"][:, t], data["next", "memory_state"][:, t]
        next_value = policy.value(*following, no_reset)
        torch.testing.assert_close(
            out["next", "state_value"][:, t, 0], next_value, atol=1e-5, rtol=1e-5
        )


def test_clearing_the_state_instead_of_loading_it_would_change_the_next_values():
    # The reason why a restart loads the stored state: the test above must be able to fail.
    policy = make_policy()
    data = collect(policy, BATCH * 40)
    following, restarts = data["next"].clone(), data["is_init"].squeeze(-1)
    following["is_init"] = data["is_init"]
    with set_recurrent_mode(True), torch.no_grad():
        exact = value_module(policy)(following.clone())["state_value"]
        following["memory_state"][restarts] = 0.0
        cleared = value_module(policy)(following)["state_value"]
    assert (exact - cleared).abs().max() > 1e-3


def test_a_module_is_usable_beside_torchrl_s_own():
    module = make_module()
    head = TensorDictModule(torch.nn.Linear(HIDDEN, 1), in_keys=["y"], out_keys=["state_value"])
    data = make_data(zero_restarts=True)
    with set_recurrent_mode(True):
        assert TensorDictSequential(module, head)(data)["state_value"].shape == (BATCH, TIME, 1)
