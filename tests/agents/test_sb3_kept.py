"""The states that RecurrentPPO carries by handles: equal to whole ones, and kept long enough."""

from copy import deepcopy

import pytest
import torch
from sb3_cases import ACTIONS, OBSERVATIONS, random_envs
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback

from doxastic.agents.sb3 import BeliefPolicy

ENVS, STEPS = 3, 16


def make_model(**kwargs):
    env = random_envs(OBSERVATIONS["box"], ACTIONS["discrete"])
    settings = {"n_steps": STEPS, "batch_size": 20, "n_epochs": 2, "seed": 0}
    return RecurrentPPO(BeliefPolicy, env, policy_kwargs={"width": 16, **kwargs}, **settings)


def zeros(width):
    return RNNStates(*((torch.zeros(1, ENVS, width),) * 2 for _ in "pv"))


def acted(policy, width, steps=6):
    """Return what a policy gives at each of some steps, and the states it carries."""
    draw = torch.Generator().manual_seed(0)
    states, results = zeros(width), []
    for _ in range(steps):
        starts = (torch.rand(ENVS, generator=draw) < 0.3).float()
        observation = torch.randn(ENVS, 3, generator=draw)
        with torch.no_grad():
            *result, states = policy(observation, states, starts, deterministic=True)
        results.append((result, states))
    return results


class During(BaseCallback):
    """Calls a function at every step of the training."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        self.function(self.model)
        return True


class Between(BaseCallback):
    """Steps the policy by hand after the last step of every rollout and before the first."""

    handles = None

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.ask(zeros(1))
        # Two steps that belong together, the second one from the handles of the first.
        self.handles = self.ask(self.ask(zeros(1)))

    def _on_rollout_start(self):
        self.ask(zeros(1))
        if self.handles is not None:
            self.ask(self.handles)

    def ask(self, states):
        policy = self.model.policy
        with torch.no_grad():
            return policy(torch.zeros(ENVS, 3), states, torch.zeros(ENVS), deterministic=True)[3]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("memory", ["belief", "gru", "none"])
def test_a_handle_stands_for_the_state_that_is_carried_whole(memory, share):
    policy = make_model(memory=memory, share_memory=share).policy
    recurrent = policy.lstm_actor
    by_handle = acted(policy, recurrent.hidden_size)
    for (first, handles), (second, whole) in zip(
        by_handle, acted(policy, recurrent.half_size), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert handles.pi[0].shape == (1, ENVS, 1) and whole.pi[0].shape[2] > 1
        assert torch.equal(recurrent.read(handles.pi), recurrent.read(whole.pi))
        if not share:
            critic = policy.lstm_critic
            assert torch.equal(critic.read(handles.vf), critic.read(whole.vf))


def test_steps_by_hand_between_rollouts_leave_the_training_its_states():
    def trained(by_hand):
        model = make_model().learn(ENVS * STEPS)
        if by_hand:
            acted(model.policy, 1)
        model.learn(ENVS * STEPS, reset_num_timesteps=False)
        return model.policy.state_dict()

    alone, stepped = trained(by_hand=False), trained(by_hand=True)
    for name, weight in alone.items():
        torch.testing.assert_close(weight, stepped[name], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_handles_are_cut_and_joined_as_states():
    policy = make_model().policy
    (_, first), *_, (_, last) = acted(policy, 1)
    states = torch.cat([policy.lstm_actor.read(s.pi) for s in (first, last)])
    pair = tuple(torch.cat(parts, 1) for parts in zip(first.pi, last.pi, strict=True))
    chosen = [4, 0, 5]
    found = policy.lstm_actor.read(tuple(part[:, chosen] for part in pair))
    assert torch.equal(found, states[chosen])
    observation = torch.randn(ENVS, 3)
    one = tuple(part[:, 1:2].contiguous() for part in last.vf)
    value = policy.predict_values(observation[1:2], one, torch.zeros(1))
    expected = policy.predict_values(observation, last.vf, torch.zeros(ENVS))[1:2]
    torch.testing.assert_close(value, expected)


def test_what_a_callback_asks_the_policy_leaves_the_training_as_it_is():
    def ask(model):
        observation = torch.zeros(ENVS, 3)
        model.predict(observation.numpy(), deterministic=True)
        model.policy.predict_values(observation, model._last_lstm_states.vf, torch.ones(ENVS))
        arguments = observation, torch.zeros(ENVS), model._last_lstm_states, torch.ones(ENVS)
        model.policy.evaluate_actions(*arguments)
        model.policy(*arguments[::2], arguments[3], deterministic=True)

    alone = make_model().learn(3 * ENVS * STEPS).policy.state_dict()
    asked = make_model().learn(3 * ENVS * STEPS, callback=During(ask)).policy.state_dict()
    for name, weight in alone.items():
        torch.testing.assert_close(weight, asked[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 2**24 - 2 * STEPS])
@pytest.mark.parametrize("share", [True, False])
def test_steps_by_hand_on_both_sides_of_an_update_leave_the_training_as_it_is(first, share):
    def trained(callback):
        model = make_model(share_memory=share)
        for memory in filter(None, (model.policy.lstm_actor, model.policy.lstm_critic)):
            memory.kept.number = first
        return model.learn(3 * ENVS * STEPS, callback=callback).policy.state_dict()

    alone, asked = trained(None), trained(Between())
    for name, weight in alone.items():
        torch.testing.assert_close(weight, asked[name], atol=1e-6, rtol=1e-5)


def test_a_copy_made_in_the_middle_of_a_rollout_goes_on_alike():
    policy = make_model().policy
    _, states = acted(policy, 1)[-1]
    copy = deepcopy(policy)
    observation, starts = torch.randn(ENVS, 3), torch.zeros(ENVS)
    with torch.no_grad():
        results = [p(observation, states, starts, True) for p in (policy, copy)]
    assert torch.equal(results[0][1], results[1][1])
    read = (p.lstm_actor.read(r[3].pi) for p, r in zip((policy, copy), results, strict=True))
    assert torch.equal(*read)


def test_little_more_than_a_rollout_is_kept():
    model = make_model()
    kept = model.policy.lstm_actor.kept
    size = 4 * ENVS * model.policy.lstm_actor.memory.state_size
    for _ in range(3):
        model.learn(2 * ENVS * STEPS, reset_num_timesteps=False)
        # The end of the rollout before, after the last minibatch began.
        assert STEPS * size <= kept.nbytes <= (STEPS + 4) * size


def test_a_handle_of_a_state_that_is_gone_is_refused_with_the_remedy():
    policy = make_model().policy.train(False)
    (_, first), *_, (_, last) = acted(policy, 1)
    arguments = torch.zeros(ENVS, 3), torch.zeros(ENVS), first, torch.zeros(ENVS)
    # Not the end of a rollout: the policy is not in training mode.
    policy.evaluate_actions(*arguments)
    policy(torch.zeros(ENVS, 3), last, torch.zeros(ENVS))
    policy.train().evaluate_actions(*arguments)
    policy.evaluate_actions(*arguments)
    policy(torch.zeros(ENVS, 3), last, torch.zeros(ENVS))
    policy.lstm_actor.read(last.pi)
    with pytest.raises(ValueError, match=r"row 0 after step 1 is not kept.*`predict`"):
        policy.evaluate_actions(*arguments)


def test_the_numbers_of_steps_start_again_before_float32_leaves_one_out():
    policy = make_model().policy
    kept = policy.lstm_actor.kept
    kept.number = 2**24 - 4
    numbers = [states.pi[0][0, 0, 0].item() for _, states in acted(policy, 1)]
    assert numbers == [2**24 - 3, 2**24 - 2, 2**24 - 1, 1, 2, 3]
    assert kept.number == 3
