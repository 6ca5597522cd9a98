"""The policies inside sb3-contrib's RecurrentPPO: sb3-contrib's own cases, written anew."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_cases import (
    ACTIONS,
    DICT,
    DICT_WITH_IMAGE,
    IMAGE,
    OBSERVATIONS,
    assert_learns,
    cart_pole,
    random_envs,
)
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize

from doxastic.agents.sb3 import (
    BeliefPolicy,
    BeliefRecurrentPPO,
    CnnBeliefPolicy,
    MultiInputBeliefPolicy,
)
from doxastic.memory.baselines import GRUMemory
from doxastic.memory.build import MemoryConfig

MEMORIES = ["belief", "rwkv7", "gru", "lstm", "window", "none"]
CHOICES = [
    *MEMORIES,
    MemoryConfig(kind="gru", width=5, layers=2),
    lambda size: GRUMemory(size, 7),
]


def make_model(policy=BeliefPolicy, env=None, algorithm=RecurrentPPO, kwargs=None, **settings):
    env = env or random_envs(OBSERVATIONS["box"], ACTIONS["discrete"])
    settings = {"n_steps": 16, "batch_size": 20, "n_epochs": 2, "seed": 0, **settings}
    return algorithm(policy, env, policy_kwargs={"width": 16, **(kwargs or {})}, **settings)


def random_pieces(policy, batch=4, steps=7):
    """Return observations, states and starts of a batch of sequences with resets inside."""
    draw = torch.Generator().manual_seed(3)
    zeros = (torch.zeros(1, batch, policy.lstm_actor.hidden_size),) * 2
    # Half way through an episode: no memory was ever in an arbitrary state.
    states = RNNStates(zeros, zeros)
    with torch.no_grad():
        for _ in range(5):
            before = torch.randn(batch, 3, generator=draw)
            *_, states = policy(before, states, torch.zeros(batch))
    observation = torch.randn(batch, steps, 3, generator=draw)
    starts = (torch.rand(batch, steps, generator=draw) < 0.3).float()
    return observation, states, starts


@pytest.mark.parametrize("memory", CHOICES, ids=lambda x: x if isinstance(x, str) else "given")
def test_every_memory_learns_and_predicts(memory):
    model = make_model(kwargs={"memory": memory}).learn(100)
    observation = model.get_env().reset()
    action, state = model.predict(observation)
    again, _ = model.predict(observation, state, np.ones(3, bool), deterministic=True)
    assert action.shape == again.shape == (3,)
    width = model.policy.lstm_hidden_state_shape[2]
    assert all(part.shape == (1, 3, width) for part in state)


@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_vectors_and_symbols_are_taken(name, algorithm):
    env = random_envs(OBSERVATIONS[name], ACTIONS["discrete"])
    assert_learns(make_model(env=env, algorithm=algorithm), 100)


@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
@pytest.mark.parametrize("name", ACTIONS)
def test_every_kind_of_action_is_taken(name, algorithm):
    env = random_envs(OBSERVATIONS["box"], ACTIONS[name])
    model = make_model(env=env, algorithm=algorithm).learn(100)
    action, _ = model.predict(env.reset())
    assert all(ACTIONS[name].contains(one) for one in action)


@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
@pytest.mark.parametrize(
    ("policy", "space"),
    [
        (CnnBeliefPolicy, IMAGE),
        (MultiInputBeliefPolicy, DICT),
        (MultiInputBeliefPolicy, DICT_WITH_IMAGE),
    ],
)
def test_images_and_dicts_are_taken(policy, space, algorithm):
    env = random_envs(space, ACTIONS["discrete"])
    model = make_model(policy, env, algorithm).learn(100)
    assert model.predict(env.reset())[0].shape == (3,)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"share_memory": False},
        {"share_memory": False, "share_features_extractor": False},
        {"net_arch": []},
        {"net_arch": {"pi": [], "vf": [8]}, "activation_fn": torch.nn.ReLU, "ortho_init": False},
        {"features_extractor_class": FlattenExtractor},
        {"optimizer_class": torch.optim.SGD},
        {"optimizer_kwargs": {"weight_decay": 1e-3}},
    ],
)
def test_options_of_stable_baselines_work(kwargs):
    assert_learns(make_model(kwargs=kwargs), 100)


def test_state_dependent_exploration_works():
    env = random_envs(OBSERVATIONS["box"], ACTIONS["box"])
    assert_learns(make_model(env=env, use_sde=True, sde_sample_freq=4), 100)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_a_segment_with_resets_inside_equals_its_steps(memory, share):
    policy = make_model(kwargs={"memory": memory, "share_memory": share}).policy
    observation, states, starts = random_pieces(policy)
    actions = torch.randint(3, starts.shape)
    values, log_probs, _ = policy.evaluate_actions(
        observation.flatten(0, 1), actions.flatten(), states, starts.flatten()
    )
    for t in range(starts.shape[1]):
        step = observation[:, t], states.pi, starts[:, t]
        distribution, _ = policy.get_distribution(*step)
        value = policy.predict_values(observation[:, t], states.vf, starts[:, t])
        _, stepped, _, states = policy(observation[:, t], states, starts[:, t])
        torch.testing.assert_close(value, stepped)
        torch.testing.assert_close(values.view(4, 7)[:, t], value[:, 0], atol=1e-5, rtol=1e-5)
        expected = distribution.log_prob(actions[:, t])
        torch.testing.assert_close(log_probs.view(4, 7)[:, t], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_the_value_loss_trains_a_shared_memory_but_not_the_policys_own(share):
    policy = make_model(kwargs={"share_memory": share}).policy
    observation, states, starts = random_pieces(policy)
    values, _, _ = policy.evaluate_actions(
        observation.flatten(0, 1), torch.zeros(28), states, starts.flatten()
    )
    values.sum().backward()
    gradients = [p.grad for p in policy.lstm_actor.parameters()]
    assert all((grad is not None) == share for grad in gradients)


def test_every_parameter_is_trained():
    policy = make_model(kwargs={"share_memory": False}).policy
    observation, states, starts = random_pieces(policy)
    values, log_prob, _ = policy.evaluate_actions(
        observation.flatten(0, 1), torch.zeros(28), states, starts.flatten()
    )
    (values.sum() + log_prob.sum()).backward()
    trained = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and id(parameter) in trained, name


@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
def test_the_same_seed_gives_the_same_weights(algorithm):
    first, second = (make_model(algorithm=algorithm).learn(150).policy for _ in range(2))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
def test_a_saved_model_predicts_and_learns_on(algorithm, tmp_path):
    kwargs = {"memory": MemoryConfig(width=16, belief_size=4), "share_memory": False}
    model = make_model(algorithm=algorithm, kwargs=kwargs).learn(100)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env())
    observation = model.get_env().reset()
    state = other = None
    for _ in range(4):
        action, state = model.predict(observation, state, deterministic=True)
        same, other = loaded.predict(observation, other, deterministic=True)
        np.testing.assert_array_equal(action, same)
        np.testing.assert_array_equal(state, other)
    loaded.learn(100)


def test_a_saved_policy_is_loaded_by_itself(tmp_path):
    kwargs = {"memory": "gru", "share_memory": False, "share_features_extractor": False}
    policy = make_model(kwargs=kwargs).policy
    policy.save(tmp_path / "policy")
    loaded = BeliefPolicy.load(tmp_path / "policy")
    observation = random_envs(OBSERVATIONS["box"], ACTIONS["discrete"]).reset()
    np.testing.assert_array_equal(policy.predict(observation)[1], loaded.predict(observation)[1])


def test_an_episode_start_clears_the_state_of_its_row_alone():
    model = make_model()
    observation = model.get_env().reset()
    _, state = model.predict(observation)
    _, carried = model.predict(observation, state, np.zeros(3, bool))
    _, cleared = model.predict(observation, state, np.array([False, True, False]))
    size = model.policy.lstm_actor.memory.state_size
    before, first, second = (
        np.concatenate((pair[0][0], pair[1][0]), 1)[:, :size] for pair in (state, carried, cleared)
    )
    np.testing.assert_array_equal(first[[0, 2]], second[[0, 2]])
    np.testing.assert_allclose(second[1], before[1], atol=1e-6)
    assert not np.allclose(first[1], second[1])


def test_one_observation_gives_one_action():
    model = make_model()
    action, state = model.predict(np.zeros(3, np.float32))
    assert np.shape(action) == () and state[0].shape[1] == 1


def test_normalisation_callbacks_and_logs_work_unchanged(tmp_path):
    env = VecNormalize(make_vec_env(cart_pole, n_envs=2))
    test_env = VecNormalize(make_vec_env(cart_pole, n_envs=1), training=False, norm_reward=False)
    model = make_model(env=env, tensorboard_log=str(tmp_path))
    callbacks = [
        EvalCallback(test_env, n_eval_episodes=1, eval_freq=16, verbose=0),
        CheckpointCallback(16, str(tmp_path)),
    ]
    model.learn(64, callback=callbacks, progress_bar=True)
    assert len(list(tmp_path.glob("**/events*"))) == 1
    assert len(list(tmp_path.glob("rl_model_*.zip"))) == 2
    mean, _ = evaluate_policy(model, test_env, n_eval_episodes=2)
    assert mean >= 2 * 4


@pytest.mark.parametrize(
    ("policy", "space", "remedy"),
    [
        (BeliefPolicy, DICT, "Use MultiInputBeliefPolicy"),
        (BeliefPolicy, IMAGE, "Use CnnBeliefPolicy"),
        (CnnBeliefPolicy, OBSERVATIONS["box"], "Use BeliefPolicy"),
        (MultiInputBeliefPolicy, OBSERVATIONS["discrete"], "Use BeliefPolicy"),
    ],
)
def test_a_space_of_another_variant_is_refused_with_its_name(policy, space, remedy):
    with pytest.raises(ValueError, match=remedy):
        make_model(policy, random_envs(space, ACTIONS["discrete"]))


def test_actions_that_do_not_count_from_zero_are_refused():
    env = random_envs(OBSERVATIONS["box"], spaces.Discrete(3, start=1))
    with pytest.raises(ValueError, match="TransformAction"):
        make_model(env=env)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_algorithm_without_recurrence_is_refused_with_the_remedy(algorithm):
    model = algorithm(BeliefPolicy, random_envs(OBSERVATIONS["box"], ACTIONS["discrete"]))
    with pytest.raises(TypeError, match=r"sb3_contrib\.RecurrentPPO .* BeliefExtractor"):
        model.learn(10)


@pytest.mark.parametrize("algorithm", [DQN, SAC, TD3])
def test_an_off_policy_algorithm_is_refused_with_the_remedy(algorithm):
    action = ACTIONS["discrete" if algorithm is DQN else "box"]
    with pytest.raises(AttributeError, match=r"sb3_contrib\.RecurrentPPO .* BeliefExtractor"):
        algorithm(BeliefPolicy, random_envs(OBSERVATIONS["box"], action))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": "lstn"}, "memory is 'lstn'; expected one of belief, rwkv7"),
        ({"share_features_extractor": False}, "Set share_memory=False as well"),
        ({"width": 17}, "multiple of memory.head_size"),
    ],
)
def test_options_that_cannot_be_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(kwargs=kwargs)


def test_the_state_of_another_memory_is_refused():
    model, other = make_model(), make_model(kwargs={"memory": "gru"})
    observation = model.get_env().reset()
    _, state = other.predict(observation)
    with pytest.raises(ValueError, match="Pass what this policy returned"):
        model.predict(observation, state)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algorithm", [RecurrentPPO, BeliefRecurrentPPO])
def test_cart_pole_without_velocities_is_learnt_in_50_000_steps(algorithm):
    # The environment, the settings and the bar of sb3-contrib's own test.
    env = VecNormalize(make_vec_env(cart_pole, n_envs=8))
    model = algorithm(
        "BeliefPolicy" if algorithm is BeliefRecurrentPPO else BeliefPolicy,
        env,
        n_steps=128,
        learning_rate=7e-4,
        batch_size=256,
        n_epochs=10,
        max_grad_norm=1,
        gae_lambda=0.98,
        seed=1,
        policy_kwargs={"net_arch": {"vf": [64]}},
    )
    model.learn(50_000)
    env.training, env.norm_reward = False, False
    mean, _ = evaluate_policy(model, env, n_eval_episodes=40)
    assert mean >= 450
