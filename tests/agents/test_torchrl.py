import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import GymWrapper, InitTracker, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp
from torchrl.modules import set_recurrent_mode
from torchrl_cases import (
    BATCH,
    HIDDEN,
    TIME,
    Rooms,
    States,
    Walk,
    collect,
    make_data,
    make_env,
    make_module,
    make_policy,
)

from doxastic.agents.agent import Agent
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import PolicyConfig
from doxastic.agents.torchrl import MemoryModule, policy_module, value_module
from doxastic.memory.baselines import GRUMemory, LSTMMemory, NoMemory, WindowMemory
from doxastic.memory.belief import BeliefMemory


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


def test_an_item_that_torchrl_renames_is_found():
    policy = policy_module(make_policy(env_class=States))
    env = GymWrapper(States(), categorical_action_encoding=True).append_transform(InitTracker())
    env = env.append_transform(policy[0].make_tensordict_primer())
    data = env.rollout(5, policy)
    assert policy[0].in_keys[0] == "observation" and "state" not in data
    items = {"observation": Walk.observation_space, "state": Walk.observation_space}
    both = policy_module(make_policy(observation=spaces.Dict(items)))
    assert both[0].in_keys[:2] == ["observation", "state"]


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


def test_a_module_is_usable_beside_torchrl_s_own():
    module = make_module()
    head = TensorDictModule(torch.nn.Linear(HIDDEN, 1), in_keys=["y"], out_keys=["state_value"])
    data = make_data(zero_restarts=True)
    with set_recurrent_mode(True):
        assert TensorDictSequential(module, head)(data)["state_value"].shape == (BATCH, TIME, 1)


class CountedGRU(GRUMemory):
    calls = 0

    def forward(self, x, state, reset):
        self.calls += 1
        return super().forward(x, state, reset)


def test_however_many_the_restarts_the_calls_grow_with_the_logarithm_of_the_length():
    module = MemoryModule(CountedGRU(5, HIDDEN), in_key="x", out_key="y")
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(8, 64, 5, generator=generator),
        "memory_state": torch.randn(8, 64, HIDDEN, generator=generator),
        "is_init": torch.rand(8, 64, 1, generator=generator) < 0.2,
    }
    with set_recurrent_mode(True):
        module(TensorDict(batch, [8, 64]))
    assert batch["is_init"].sum() > 80
    assert module.memory.calls <= 6


@pytest.mark.parametrize(
    "memory",
    [BeliefMemory(2, 16), LSTMMemory(2, 8), WindowMemory(2, 8, 4), NoMemory(2, 8)],
    ids=type,
)
def test_every_memory_replays_its_steps_where_slices_begin_anywhere(memory):
    module = MemoryModule(memory, in_key="observation", out_key="y")
    act = TensorDictModule(lambda y: (y[..., 0] > 0).long(), in_keys=["y"], out_keys=["action"])
    env = make_env().append_transform(InitTracker())
    env = env.append_transform(module.make_tensordict_primer())
    with torch.no_grad():
        data = env.rollout(20, TensorDictSequential(module, act), break_when_any_done=False)
    assert data["is_init"][:, 1:].any()
    slices = torch.cat([data[0, 3:9], data[2, 5:18], data[1, :7]])
    slices["is_init"][[0, 6, 19]] = True
    stepped = slices["y"].clone()
    with set_recurrent_mode(True), torch.no_grad():
        replayed = module(slices)["y"]
    torch.testing.assert_close(replayed, stepped, atol=1e-5, rtol=1e-5)


def test_an_encoder_reads_a_dict_of_entries():
    class Sum(torch.nn.Module):
        def forward(self, entries):
            return entries["left"] + entries["right"]

    module = make_module()
    both = MemoryModule(
        module.memory, in_key={"left": "a", "right": ("b", "c")}, out_key="y", encoder=Sum()
    )
    data = make_data(zero_restarts=True)[:, 0]
    split = data.clone().set("a", data["x"] - 1).set(("b", "c"), torch.ones_like(data["x"]))
    assert both.in_keys == ["a", ("b", "c"), "memory_state", "is_init"]
    torch.testing.assert_close(both(split)["y"], module(data.clone())["y"])


def test_an_agents_scale_of_observations_comes_with_it():
    policy = make_policy()
    scale = ObservationNormalizer(Walk.observation_space)
    scale.update(torch.randn(100, 2) * 3 + 1)
    data = collect(Agent(policy, scale), BATCH * 10)
    scaled = data.clone().set("observation", scale(data["observation"]))
    with set_recurrent_mode(True), torch.no_grad():
        expected = value_module(policy)(scaled)["state_value"]
        value = value_module(Agent(policy, scale))(data.clone())["state_value"]
        unscaled = value_module(policy)(data.clone())["state_value"]
    torch.testing.assert_close(value, expected)
    assert (value - unscaled).abs().max() > 1e-3


def test_observations_of_another_space_are_refused_with_both_named():
    data = TensorDict(
        {
            "observation": torch.zeros(3, 5),
            "memory_state": torch.zeros(3, HIDDEN),
            "is_init": torch.ones(3, 1, dtype=torch.bool),
        },
        [3],
    )
    with pytest.raises(ValueError, match=r"\[3, 5\]; expected \['...', 2\].*config.yaml"):
        policy_module(make_policy())(data)


@pytest.mark.parametrize("name", ["features", "memory_state", "is_init", "logits", "state_value"])
@pytest.mark.parametrize("module", [policy_module, value_module])
def test_an_item_with_the_name_of_another_entry_is_refused(module, name):
    policy = make_policy(observation=spaces.Dict({name: Walk.observation_space}))
    with pytest.raises(ValueError, match=rf"have an item '{name}'; expected another name.*Rename"):
        module(policy)


def test_the_memory_of_a_run_refuses_an_item_with_the_name_of_its_entries(monkeypatch):
    agent = Agent(make_policy(observation=spaces.Dict({"features": Walk.observation_space})))
    monkeypatch.setattr("doxastic.training.load", lambda *_: agent)
    with pytest.raises(ValueError, match=r"have an item 'features'.*another out_key or state_key"):
        MemoryModule.from_run("run")
    assert MemoryModule.from_run("run", out_key="h").in_keys[0] == "features"


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([3, 2], start=[0, 1]),
        spaces.MultiDiscrete([[3, 2], [2, 2]]),
        spaces.MultiBinary([2, 2]),
        spaces.Box(0, np.inf, (2,)),
        spaces.Box(np.array([-1, -np.inf], "f4"), np.array([1, np.inf], "f4")),
        spaces.Box(-1, 1, (2, 2)),
    ],
    ids=str,
)
def test_actions_that_the_environment_takes_in_another_form_are_refused(space):
    policy = make_policy(action=space)
    with pytest.raises(ValueError, match=r"cannot be acted in through TorchRL.*TransformAction"):
        policy_module(policy)
    value_module(policy)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(2),
        spaces.Box(-1, 3, (2,)),
        spaces.Box(-np.inf, np.inf, (2,)),
    ],
    ids=str,
)
def test_actions_that_the_environment_takes_as_they_are_have_a_policy(space):
    assert policy_module(make_policy(action=space)).out_keys[-2:] == ["action", "log_prob"]


def test_bounded_actions_go_where_the_network_is_moved():
    head = make_policy(action=spaces.Box(-1, 3, (2,))).actor_network.to("meta")
    features = torch.empty(5, PolicyConfig().hidden_size, device="meta")
    distribution = head.get_dist(TensorDict({"features": features}, [5]))
    assert distribution.mode.device.type == distribution.low.device.type == "meta"
    assert distribution.log_prob(torch.empty(5, 2, device="meta")).shape == (5,)


def test_a_state_of_another_memory_is_refused():
    data = make_data(zero_restarts=True)
    data["memory_state"] = torch.zeros(BATCH, TIME, HIDDEN + 1)
    with set_recurrent_mode(True), pytest.raises(ValueError, match="own state_key"):
        make_module()(data)


def test_one_hot_categories_are_refused_with_the_option_that_makes_numbers():
    data = make_data(zero_restarts=True)[:, 0].clone()
    data["x"] = data["x"].unsqueeze(1).expand(BATCH, 3, 5)
    with pytest.raises(ValueError, match="categorical_action_encoding=True"):
        make_module()(data)
