import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from doxastic.agents.agent import Agent
from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.memory.baselines import GRUMemory, NoMemory
from doxastic.memory.belief import Belief, BeliefMemory

VECTOR = spaces.Box(-1, 1, (4,))
DICT = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(3)})


def make_agent(observation_space=VECTOR, action_space=None, memory=None, **kwargs):
    torch.manual_seed(0)
    action_space = action_space or spaces.Discrete(2)
    memory = memory or GRUMemory(16, 12)
    policy = ActorCritic(
        observation_space, action_space, EncoderConfig(width=16), memory, PolicyConfig()
    )
    torch.nn.init.normal_(policy.action_head.linear.weight)
    return Agent(policy, **kwargs)


class Recall(gym.Env):
    """Pays for repeating the cue of the first observation on every later step."""

    observation_space = VECTOR
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.steps = int(self.np_random.integers(2)), 0
        return np.array([1, self.cue, 1 - self.cue, 0], "f4"), {}

    def step(self, action):
        self.steps += 1
        observation = np.zeros(4, "f4")
        return observation, float(action == self.cue), self.steps == 5, False, {}


def remembering_agent():
    """An agent whose memory holds the cue and whose policy repeats it."""
    agent = make_agent(memory=GRUMemory(16, 2))
    policy, gru = agent.policy, agent.policy.memory.rnn
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        # SiLU is nearly linear far to the right: pass start flag and cue through the encoder.
        policy.encoder.hidden.weight[:4] = 20 * torch.eye(4)
        policy.encoder.output.weight[:4, :4] = torch.eye(4)
        # Gates are (reset, update, new): write on the start flag, keep otherwise.
        gru.weight_ih_l0[2:4, 0] = -10.0
        gru.bias_ih_l0[2:4] = 20.0
        gru.weight_ih_l0[4, 1] = gru.weight_ih_l0[5, 2] = 1.0
        policy.policy_body.layers[0].weight[:2, :2] = torch.eye(2)
        policy.action_head.linear.weight[0, 1] = policy.action_head.linear.weight[1, 0] = 1.0
    return agent


def test_evaluate_policy_of_stable_baselines3_carries_and_resets_the_memory():
    env = DummyVecEnv([lambda: Monitor(Recall())] * 3)
    env.seed(0)
    mean, deviation = evaluate_policy(remembering_agent(), env, n_eval_episodes=30)
    assert (mean, deviation) == (5.0, 0.0)


def test_evaluate_policy_takes_a_single_environment():
    mean, _ = evaluate_policy(remembering_agent(), Monitor(Recall()), n_eval_episodes=4)
    assert mean == 5.0


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (VECTOR, spaces.Discrete(3, start=2)),
        (VECTOR, spaces.Box(-2, 2, (2, 2))),
        (DICT, spaces.MultiDiscrete([2, 3])),
        (spaces.Discrete(5), spaces.MultiBinary(3)),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_one_environment_equals_a_batch_of_one(observation_space, action_space):
    agent = make_agent(observation_space, action_space)
    observation_space.seed(0)
    observation = observation_space.sample()
    if isinstance(observation, dict):
        batch = {key: np.asarray(part)[None] for key, part in observation.items()}
    else:
        batch = np.asarray(observation)[None]
    action, state = agent.predict(observation)
    actions, states = agent.predict(batch)
    np.testing.assert_array_equal(action, actions[0])
    np.testing.assert_array_equal(state[0], states[0])
    assert isinstance(action, np.ndarray)
    assert action in action_space
    assert actions.shape == (1, *action_space.shape)


def test_the_state_is_carried_and_episode_start_clears_its_rows():
    agent = make_agent()
    observations = np.random.default_rng(0).normal(size=(3, 2, 4)).astype("f4")
    state = None
    for observation in observations[:2]:
        _, state = agent.predict(observation, state)
    _, carried = agent.predict(observations[2], state)
    _, cleared = agent.predict(observations[2], state, episode_start=np.array([True, False]))
    _, fresh = agent.predict(observations[2])
    np.testing.assert_array_equal(cleared[0][0], fresh[0][0])
    np.testing.assert_array_equal(cleared[0][1], carried[0][1])
    assert not np.array_equal(fresh[0][1], carried[0][1])


def test_the_state_may_be_a_tuple_an_array_or_a_tensor():
    agent = make_agent()
    observation = np.ones((2, 4), "f4")
    _, state = agent.predict(observation)
    for form in (state, state[0], torch.from_numpy(state[0])):
        np.testing.assert_array_equal(agent.predict(observation, form)[1], agent.predict(
            observation, state)[1])  # fmt: skip
    np.testing.assert_array_equal(agent.initial_state(2)[0], np.zeros((2, 12)))


def test_random_actions_follow_the_seed_and_deterministic_ones_do_not_draw():
    agent = make_agent()
    with torch.no_grad():
        agent.policy.action_head.linear.weight.zero_()
    observation = np.zeros((64, 4), "f4")
    first, _ = agent.predict(observation, deterministic=False)
    second, _ = agent.predict(observation, deterministic=False)
    agent.set_random_seed(0)
    agent.predict(observation)
    again, _ = agent.predict(observation, deterministic=False)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def test_observations_are_scaled_as_in_training():
    normalizer = ObservationNormalizer(VECTOR)
    normalizer.update(torch.randn(100, 4) * 3 + 2)
    plain, scaled = make_agent(), make_agent(normalizer=normalizer)
    observation = np.random.default_rng(0).normal(size=(2, 4)).astype("f4")
    by_hand = normalizer(torch.from_numpy(observation.copy())).numpy()
    np.testing.assert_allclose(scaled.predict(observation)[1], plain.predict(by_hand)[1])


def test_a_belief_is_given_where_the_memory_has_one():
    agent = make_agent(memory=BeliefMemory(16, 16, belief_size=3))
    observation = np.random.default_rng(0).normal(size=(2, 4)).astype("f4")
    _, state = agent.predict(observation)
    belief = agent.belief(observation, state)
    assert isinstance(belief, Belief)
    assert belief.mean.shape == belief.variance.shape == belief.evidence.shape == (2, 3)
    assert (belief.variance > 0).all()
    restarted = agent.belief(observation, state, np.array([True, True]))
    np.testing.assert_allclose(restarted.evidence, agent.belief(observation).evidence)
    np.testing.assert_allclose(agent.belief(observation[0]).mean, agent.belief(observation).mean[0],
                               rtol=1e-5)  # fmt: skip


def test_asking_a_memory_without_a_belief_is_an_error_with_the_remedy():
    with pytest.raises(TypeError, match="GRUMemory holds no explicit belief"):
        make_agent().belief(np.zeros(4, "f4"))


def test_a_memory_without_state_works():
    agent = make_agent(memory=NoMemory(16, 16))
    action, state = agent.predict(np.zeros((3, 4), "f4"))
    assert action.shape == (3,)
    agent.predict(np.zeros((3, 4), "f4"), state)


def test_wrong_shapes_are_named():
    agent, batch = make_agent(), np.zeros((3, 4), "f4")
    with pytest.raises(ValueError, match=r"observation has shape \[3\]; expected \[4\]"):
        agent.predict(np.zeros(3, "f4"))
    with pytest.raises(ValueError, match=r"state has shape \[2, 12\]; expected .* \[3, 12\]"):
        agent.predict(batch, np.zeros((2, 12), "f4"))
    with pytest.raises(ValueError, match="episode_start has 2 entries; expected one for each"):
        agent.predict(batch, episode_start=[True, False])
    with pytest.raises(ValueError, match="observation is ndarray; expected a dict with the keys"):
        make_agent(DICT).predict(np.zeros(3))


def test_a_missing_entry_is_named():
    agent = make_agent(spaces.Dict({"inner": DICT, "bits": spaces.MultiBinary(2)}))
    place = np.zeros(2, "f4")
    with pytest.raises(ValueError, match=r"observation has no 'bits'; .* keys bits, inner\. It"):
        agent.predict({"inner": {"place": place, "room": 0}})
    with pytest.raises(ValueError, match=r"observation\['inner'\] has no 'room'; .* has place\."):
        agent.predict({"inner": {"place": place}, "bits": np.zeros(2, "i1")})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named(wrong):
    agent, batch = make_agent(), np.zeros((3, 4))
    batch[2, 1] = wrong
    with pytest.raises(ValueError, match=r"observation\[2, 1\] is (nan|inf); expected a finite"):
        agent.predict(batch)
    with pytest.raises(ValueError, match=r"observation\[1\] is (nan|inf); expected a finite numb"):
        agent.predict(batch[2])
    with pytest.raises(ValueError, match=r"observation\['place'\]\[0\] is (nan|inf); expected"):
        make_agent(DICT).predict({"place": [wrong, 0.0], "room": 2})


@pytest.mark.parametrize(
    ("space", "first", "last", "wrong", "message"),
    [
        (spaces.MultiDiscrete([2, 4]), [0, 0], [1, 3], [2, 0], r"observation\[0\] is 2; .*\[2 4\]"),
        (spaces.MultiDiscrete([2, 4]), [0, 0], [1, 3], [0, -1], r"observation\[1\] is -1; "),
        (spaces.Discrete(3, start=5), 5, 7, 8, r"observation is 8; .* Discrete\(3, start=5\)"),
        (spaces.Discrete(3, start=5), 5, 7, 4, r"observation is 4; "),
    ],
)
def test_symbols_outside_the_space_are_named(space, first, last, wrong, message):
    agent = make_agent(space)
    agent.predict(np.array([first, last]))
    with pytest.raises(ValueError, match=message):
        agent.predict(wrong)
    with pytest.raises(ValueError, match=r"observation\[1(, [01])?\] is "):
        agent.predict(np.array([first, wrong, last]))
    with pytest.raises(ValueError, match=r"observation\['inner'\](\[[01]\])? is "):
        make_agent(spaces.Dict({"inner": space})).predict({"inner": wrong})
