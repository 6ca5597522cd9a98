"""The lean collector and TorchRL's own give the same rollouts."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.collectors import Collector as TorchRLCollector
from torchrl.envs import ExplorationType, GymWrapper
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from doxastic.agents.collector import Collector
from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.agents.torchrl import policy_module, value_module
from doxastic.memory.baselines import GRUMemory

ENVS, STEPS, SEGMENTS = 3, 25, 2


class Drift(gym.Env):
    """A walk that the actions steer; it terminates far out and truncates after seven steps."""

    observation_space = spaces.Box(-10, 10, (2,))

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal(size=2)
        return self.place.astype("f4"), {}

    def step(self, action):
        self.steps += 1
        push = np.sum(action) / 3
        self.place = self.place + push + self.np_random.normal(size=2)
        out = bool(np.abs(self.place).max() > 4)
        observation = np.clip(self.place, -10, 10).astype("f4")
        return observation, float(push), out, self.steps == 7, {}


@pytest.fixture(params=[spaces.Discrete(3), spaces.Box(-2, 2, (2,))], ids=["discrete", "box"])
def rollouts(request, monkeypatch):
    torch.manual_seed(0)
    policy = ActorCritic(
        Drift.observation_space,
        request.param,
        EncoderConfig(width=16),
        GRUMemory(16, 6),
        PolicyConfig(),
    )
    torch.nn.init.normal_(policy.action_head.linear.weight)
    return policy, _lean(policy, request.param, monkeypatch), _torchrl(policy, request.param)


class SeededVectorEnv(SyncVectorEnv):
    """Starts from the same seeds whoever resets it, and never resets a new episode.

    TorchRL resets several times before the first step, and once more, in vain, wherever all
    episodes end at the same step.
    """

    fresh = None

    def reset(self, *, seed=None, options=None):
        if self.fresh is not None:
            return self.fresh, {}
        return super().reset(seed=5, options=options)

    def step(self, actions):
        outcome = observation, _, terminated, truncated, _ = super().step(actions)
        # TorchRL writes final observations into the array it is given.
        self.fresh = observation.copy() if (terminated | truncated).all() else None
        return outcome


def _vector_env(action_space):
    makers = [lambda: Drift(action_space)] * ENVS
    return SeededVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def _lean(policy, action_space, monkeypatch):
    act = policy.act
    monkeypatch.setattr(policy, "act", lambda *a, **k: act(*a, **{**k, "deterministic": True}))
    collector = Collector(policy, _vector_env(action_space), STEPS)
    segments = [collector.collect() for _ in range(SEGMENTS)]
    monkeypatch.undo()
    return segments


def _torchrl(policy, action_space):
    env = GymWrapper(_vector_env(action_space), categorical_action_encoding=True)
    collector = TorchRLCollector(
        env,
        policy_module(policy),
        frames_per_batch=ENVS * STEPS,
        total_frames=ENVS * STEPS * SEGMENTS,
        auto_register_policy_transforms=True,
        exploration_type=ExplorationType.DETERMINISTIC,
    )
    segments = [data.clone() for data in collector]
    collector.shutdown()
    return segments


def test_observations_actions_rewards_and_ends_are_the_same(rollouts):
    _, lean, torchrl = rollouts
    for ours, theirs in zip(lean, torchrl, strict=True):
        assert ours["done"].any()
        following = theirs["next"]
        torch.testing.assert_close(ours["observation"], theirs["observation"])
        torch.testing.assert_close(ours["action"], theirs["action"])
        torch.testing.assert_close(ours["reward"], following["reward"].squeeze(-1))
        for key in ("terminated", "done"):
            assert torch.equal(ours[key], following[key].squeeze(-1)), key
        truncated = following["truncated"] & ~following["terminated"]
        assert torch.equal(ours["truncated"], truncated.squeeze(-1))
        assert torch.equal(ours["reset"], theirs["is_init"].squeeze(-1))


def test_the_state_of_a_segment_is_the_one_torchrl_stores_at_its_first_step(rollouts):
    _, lean, torchrl = rollouts
    for ours, theirs in zip(lean, torchrl, strict=True):
        state = ours["state"].masked_fill(ours["reset"][:, :1], 0.0)
        torch.testing.assert_close(state, theirs["memory_state"][:, 0], atol=1e-5, rtol=1e-5)


def test_log_probs_values_and_next_values_are_the_same(rollouts):
    policy, lean, torchrl = rollouts
    gae = GAE(
        gamma=0.99,
        lmbda=0.95,
        value_network=value_module(policy),
        shifted=False,
        deactivate_vmap=True,
    )
    for ours, theirs in zip(lean, torchrl, strict=True):
        with set_recurrent_mode(True), torch.no_grad():
            theirs = gae(theirs)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(ours["action_log_prob"], theirs["log_prob"], **close)
        torch.testing.assert_close(ours["value"], theirs["state_value"].squeeze(-1), **close)
        # What follows a termination is worth nothing; TorchRL masks it only within GAE.
        next_value = theirs["next", "state_value"].squeeze(-1).masked_fill(ours["terminated"], 0.0)
        torch.testing.assert_close(ours["next_value"], next_value, **close)
