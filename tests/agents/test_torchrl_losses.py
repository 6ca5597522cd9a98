import functools

import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SliceSampler
from torchrl.envs import GymEnv
from torchrl.modules import (
    ProbabilisticActor,
    QValueModule,
    TanhNormal,
    ValueOperator,
    set_recurrent_mode,
)
from torchrl.objectives import ClipPPOLoss, DQNLoss, SACLoss
from torchrl.objectives.value import GAE
from torchrl_cases import (
    BATCH,
    HIDDEN,
    INPUT,
    collect,
    make_data,
    make_env,
    make_module,
    make_policy,
)

from doxastic.agents.torchrl import (
    MemoryModule,
    mark_next_restarts,
    policy_module,
    to_segments,
    value_module,
)
from doxastic.memory.baselines import GRUMemory
from doxastic.memory.belief import BeliefMemory


def estimate(policy, data, **kwargs):
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=value_module(policy), **kwargs)
    with set_recurrent_mode(True), torch.no_grad():
        return gae(data.clone())


@pytest.fixture(scope="module")
def rollout():
    policy = make_policy(BeliefMemory(16, 16))
    return policy, collect(policy, BATCH * 40)


def ppo_losses(policy, data):
    loss = ClipPPOLoss(policy_module(policy), value_module(policy), log_explained_variance=False)
    loss.set_keys(sample_log_prob="log_prob")
    with set_recurrent_mode(True):
        out = loss(data.clone())
    total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
    total.backward()
    gradient = sum(p.grad.square().sum() for p in loss.parameters() if p.grad is not None)
    return total.detach(), gradient


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


def test_shifted_and_unshifted_gae_agree_where_the_shifted_one_is_valid(rollout):
    policy, data = rollout
    exact = estimate(policy, data, shifted=False, deactivate_vmap=True)
    shifted = estimate(policy, data, shifted=True, deactivate_vmap=True)
    valid = shifted["shifted_valid"].reshape(BATCH, 40, 1)
    assert valid.float().mean() > 0.8
    torch.testing.assert_close(exact["state_value"][valid], shifted["state_value"][valid])
    # What follows a termination counts for nothing, and is not evaluated there.
    valid &= ~data["next", "terminated"]
    following = (td["next", "state_value"][valid] for td in (exact, shifted))
    torch.testing.assert_close(*following, atol=1e-5, rtol=1e-5)


def test_vmap_is_refused_with_the_option_that_turns_it_off(rollout):
    with pytest.raises(RuntimeError, match="deactivate_vmap=True"):
        estimate(*rollout)


def test_segments_store_the_state_once_and_give_the_same_loss(rollout):
    policy, data = rollout
    data = estimate(policy, data, shifted=False, deactivate_vmap=True)
    segments = to_segments(data, 10)
    assert segments.batch_size == (BATCH * 4,)
    assert segments["observation"].shape == (BATCH * 4, 10, 2)
    assert segments["memory_state"].shape == (BATCH * 4, policy.memory.state_size)
    assert ("next", "memory_state") not in segments.keys(True)
    assert data["memory_state"].shape[1] == 40, "the rollout is left as it was"
    whole, gradient = ppo_losses(policy, data)
    assert gradient > 0
    policy.zero_grad()
    parts, cut = ppo_losses(policy, segments)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    # Gradients end where segments begin.
    assert cut > 0 and not torch.isclose(cut, gradient, rtol=1e-6)


def test_segments_begin_from_their_state_and_later_episodes_from_nothing():
    module, data = make_module(), make_data(zero_restarts=True)
    with set_recurrent_mode(True):
        whole = module(data.clone())
        # The states that stepping would have stored.
        state = data["memory_state"][:, 0]
        for t in range(data.shape[1]):
            data["memory_state"][:, t] = state.masked_fill(data["is_init"][:, t] & (t > 0), 0.0)
            step = data[:, t].clone()
            step["is_init"].zero_()
            with set_recurrent_mode(False):
                state = module(step)["next", "memory_state"].detach()
        segments = module(to_segments(data, 4))
    torch.testing.assert_close(segments["y"].reshape_as(whole["y"]), whole["y"])
    assert ("next", "memory_state") not in segments.keys(True)


def test_segments_refuse_what_they_cannot_cut():
    data = make_data(zero_restarts=True)
    with pytest.raises(ValueError, match=r"steps is 5 .* divisor"):
        to_segments(data, 5)
    with pytest.raises(KeyError, match=r"state_key=module\.state_key"):
        to_segments(data, 4, state_key="other")


def test_values_of_what_follows_a_segment_are_refused(rollout):
    policy, data = rollout
    segments = to_segments(data, 10)
    with set_recurrent_mode(True), pytest.raises(KeyError, match="before to_segments"):
        value_module(policy)(segments["next"])
    # TensorDict itself stops the estimator that would ask.
    with pytest.raises(RuntimeError, match="keys in the tensordicts"):
        estimate(policy, segments, shifted=False, deactivate_vmap=True)


def make_q_network(memory):
    return TensorDictSequential(
        MemoryModule(memory, in_key="observation", out_key="h"),
        TensorDictModule(torch.nn.Linear(memory.feature_size, 3), ["h"], ["action_value"]),
        QValueModule(action_space="categorical"),
    )


def sampled_slices(env, policy, frames):
    """Return slices of at most three steps of a rollout, 60 steps together."""
    collector = Collector(
        env, policy, frames_per_batch=frames, total_frames=frames,
        auto_register_policy_transforms=True,
    )  # fmt: skip
    (data,) = list(collector)
    collector.shutdown()
    sampler = SliceSampler(slice_len=3, traj_key=("collector", "traj_ids"), strict_length=False)
    storage = LazyTensorStorage(frames, ndim=data.ndim)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=60)
    buffer.extend(data)
    return buffer.sample()


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
def test_dqn_learns_from_slices_that_begin_with_their_stored_state():
    network = make_q_network(BeliefMemory(2, 16))
    batch = mark_next_restarts(sampled_slices(make_env(), network, BATCH * 30))
    # More slices than episode starts among them: most begin from a state that is not zero.
    begins = batch["is_init"].squeeze(-1)
    assert begins.sum() >= 20 and batch["memory_state"][begins].any(-1).sum() >= 5
    with set_recurrent_mode(True), torch.no_grad():
        replayed = network(batch.clone())["action_value"]
    torch.testing.assert_close(replayed, batch["action_value"], atol=1e-5, rtol=1e-5)
    loss = DQNLoss(network, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.99)
    with set_recurrent_mode(True):
        loss(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
def test_the_targets_of_dqn_are_those_of_exact_steps_from_the_stored_next_states():
    network = make_q_network(BeliefMemory(2, 16))
    batch = sampled_slices(make_env(), network, BATCH * 30)
    assert not batch["next", "is_init"].any(), "what the sampler leaves to be marked"
    with set_recurrent_mode(False), torch.no_grad():
        following = network(batch["next"].clone())["chosen_action_value"]
    following = following.masked_fill(batch["next", "terminated"], 0.0)
    loss = DQNLoss(network, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.99)
    with set_recurrent_mode(True):
        target = loss.value_estimator.value_estimate(
            mark_next_restarts(batch), target_params=loss.target_value_network_params
        )
    expected = batch["next", "reward"] + 0.99 * following
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
def test_the_losses_of_sac_are_those_of_single_steps_from_the_stored_states():
    def remember(out_key):
        memory = BeliefMemory(3, 16, norm_eps=1e4)
        return MemoryModule(
            memory, in_key="observation", out_key=out_key, state_key=f"{out_key}_state"
        )

    torch.manual_seed(0)
    env, actor_memory, critic_memory = GymEnv("Pendulum-v1"), remember("h"), remember("critic_h")
    size = critic_memory.memory.feature_size
    head = torch.nn.Sequential(torch.nn.Linear(size, 2), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictSequential(actor_memory, TensorDictModule(head, ["h"], ["loc", "scale"])),
        in_keys=["loc", "scale"], distribution_class=TanhNormal,
        distribution_kwargs={"low": -2.0, "high": 2.0},
    )  # fmt: skip
    value = ValueOperator(torch.nn.Bilinear(size, 1, 1), in_keys=["critic_h", "action"])
    critic = TensorDictSequential(critic_memory, value)
    loss = SACLoss(
        actor, critic, action_spec=env.action_spec, num_qvalue_nets=1, deactivate_vmap=True
    )
    loss.make_value_estimator(gamma=0.99)
    loss.qvalue_network_params[0].data.to_module(critic)
    policy = TensorDictSequential(actor, critic_memory)
    batch = mark_next_restarts(sampled_slices(env, policy, 90))
    losses = []
    for sequences in (batch, batch.unsqueeze(-1)):
        torch.manual_seed(1)
        with set_recurrent_mode(True), torch.no_grad():
            losses.append(loss(sequences).select("loss_actor", "loss_qvalue"))
    torch.testing.assert_close(*map(dict, losses), atol=1e-5, rtol=1e-5)


def test_marks_that_are_missing_are_asked_for():
    with pytest.raises(KeyError, match=r"no entry 'is_init'.*InitTracker"):
        mark_next_restarts(make_data(zero_restarts=True).exclude("is_init"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("segment", [True, False])
def test_a_compiled_module_gives_the_same_numbers(segment):
    torch.manual_seed(0)
    module = MemoryModule(GRUMemory(INPUT, HIDDEN), in_key="x", out_key="y")
    data = make_data(zero_restarts=False)
    data = to_segments(data, 6) if segment else data
    data["is_init"].zero_()
    with set_recurrent_mode(True):
        expected = module(data.clone())["y"]
        compiled = torch.compile(module, backend="eager")(data.clone())["y"]
    torch.testing.assert_close(compiled, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_segments_through_a_belief_compile_into_one_graph():
    module = MemoryModule(BeliefMemory(INPUT, 16), in_key="x", out_key="y")
    data = make_data(zero_restarts=True)
    data["memory_state"] = torch.zeros(*data.batch_size, module.memory.state_size)
    data = to_segments(data, 6)
    with set_recurrent_mode(True):
        expected = module(data.clone())["y"]
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(data.clone())["y"]
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_several_processes_collect_with_states_that_are_carried():
    collector = MultiSyncCollector(
        [make_env, functools.partial(make_env, seed=1)],
        policy_module(make_policy(BeliefMemory(16, 16))),
        frames_per_batch=2 * BATCH * 20,
        total_frames=4 * BATCH * 20,
        auto_register_policy_transforms=True,
        cat_results=0,
    )
    batches = [data.clone() for data in collector]
    collector.shutdown()
    for data in batches:
        assert data.batch_size == (2 * BATCH, 20)
        done = data["next", "done"][:, :-1]
        carried = data["next", "memory_state"][:, :-1].masked_fill(done, 0.0)
        torch.testing.assert_close(data["memory_state"][:, 1:], carried)
    assert batches[1]["memory_state"][:, 0].any(), "the second batch goes on from the first"
