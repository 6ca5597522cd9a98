"""BeliefRecurrentPPO against RecurrentPPO: the same minibatches, losses and weights."""

import numpy as np
import pytest
import torch
from sb3_cases import ACTIONS, DICT, OBSERVATIONS, random_envs
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent import MlpLstmPolicy

from doxastic.agents.sb3 import BeliefPolicy, BeliefRecurrentPPO, MultiInputBeliefPolicy
from doxastic.agents.sb3.segments import rejoined
from doxastic.agents.sb3.states import StateStore

SETTINGS = {"n_steps": 16, "batch_size": 20, "n_epochs": 3, "seed": 0, "learning_rate": 5e-2}
BOTH = (RecurrentPPO, BeliefRecurrentPPO)
SPACES = {"box": (OBSERVATIONS["box"], BeliefPolicy), "dict": (DICT, MultiInputBeliefPolicy)}


def make_model(algorithm, space="box", **kwargs):
    """Return a model with an optimiser whose steps are as smooth as their gradients.

    Its seed is set globally, so that one model has to learn before the next is made.
    """
    observation, policy = SPACES[space]
    kwargs = {"width": 16, "optimizer_class": torch.optim.SGD, **kwargs}
    env = random_envs(observation, ACTIONS["discrete"])
    return algorithm(policy, env, policy_kwargs=kwargs, **SETTINGS)


def first_minibatches(model):
    """Return values and log-probabilities in the first update, padding taken out."""
    evaluate, get, kept, masks = model.policy.evaluate_actions, model.rollout_buffer.get, [], []

    def keeping_results(*arguments):
        results = evaluate(*arguments)
        kept.append([part.flatten().detach() for part in results])
        return results

    def keeping_masks(batch_size):
        for samples in get(batch_size):
            masks.append(samples.mask > 0)
            yield samples

    model.policy.evaluate_actions = keeping_results
    model.rollout_buffer.get = keeping_masks
    model.learn(16 * 3)
    return [[part[mask] for part in parts] for parts, mask in zip(kept, masks, strict=True)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("space", SPACES)
def test_minibatches_are_the_same_without_padding(space, share):
    stock, lean = (
        first_minibatches(make_model(algorithm, space, share_memory=share)) for algorithm in BOTH
    )
    assert len(stock) == len(lean) == 9
    for first, second in zip(stock, lean, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", ["belief", "gru", "window"])
def test_both_learn_the_same_weights_from_the_same_seed(memory):
    stock, lean = (make_model(algorithm, memory=memory).learn(16 * 3 * 3) for algorithm in BOTH)
    start = make_model(RecurrentPPO, memory=memory).policy.state_dict()
    moved = 0.0
    for name, weight in stock.policy.state_dict().items():
        torch.testing.assert_close(weight, lean.policy.state_dict()[name], atol=2e-6, rtol=1e-4)
        moved = max(moved, (weight - start[name]).abs().max().item())
    assert moved > 1e-2
    np.testing.assert_allclose(stock.rollout_buffer.returns, lean.rollout_buffer.returns, atol=1e-5)


def test_both_learn_the_same_weights_where_updates_stop_early():
    models = []
    for algorithm in BOTH:
        model = make_model(algorithm)
        model.target_kl = 1e-6
        models.append(model.learn(16 * 3 * 4))
    stock, lean = models
    assert stock._n_updates == lean._n_updates < 3 * 4
    for name, weight in stock.policy.state_dict().items():
        torch.testing.assert_close(weight, lean.policy.state_dict()[name], atol=2e-6, rtol=1e-4)


def test_passes_that_were_left_out_come_first_in_the_next_plan():
    def planned(epochs, splits=()):
        return StateStore(10, 4, 15, epochs, shared=True, splits=splits).splits

    np.random.seed(0)
    draws = planned(5)
    np.random.seed(0)
    first = planned(3)
    assert planned(4, splits=first[1:]) == draws[1:]
    assert planned(1, splits=first[1:]) == first[1:]


def test_padded_sequences_are_run_as_the_rows_they_were_cut_from(monkeypatch):
    model = make_model(RecurrentPPO).learn(16 * 3)
    memory, sizes = model.policy.lstm_actor.memory, []
    run = memory.forward

    def counting(x, state, reset):
        sizes.append(x.shape[0] * x.shape[1])
        return run(x, state, reset)

    monkeypatch.setattr(memory, "forward", counting)
    for samples in model.rollout_buffer.get(48):
        mask, actions = samples.mask > 0, samples.actions.flatten()
        arguments = samples.observations, actions, samples.lstm_states, samples.episode_starts
        joined = model.policy.evaluate_actions(*arguments)
        padded = model.policy._evaluate(*arguments)
        for first, second in zip(joined, padded, strict=True):
            torch.testing.assert_close(first[mask], second[mask], atol=1e-5, rtol=1e-5)
    steps, padded = sum(sizes[::2]), sum(sizes[1::2])
    assert 48 <= steps < 0.7 * padded


def test_the_rows_of_padded_sequences_are_found_by_their_counts():
    starts = torch.zeros(3, 4, dtype=torch.bool)
    starts[1:, 0] = True
    rows = rejoined(starts, torch.tensor([0.0, 2.0, 6.0]), 9)
    assert rows.first.tolist() == [0] and rows.longest == 9
    assert rows.position.tolist() == list(range(9))
    assert rows.steps.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10]
    assert rows.padding.tolist() == [2, 3, 11]
    # The second sequence is another environment's.
    rows = rejoined(starts, torch.tensor([7.0, 0.0, 4.0]), 9)
    assert rows.first.tolist() == [0, 1] and rows.longest == 8
    assert rejoined(starts, torch.zeros(3), 9) is None


def test_steps_that_do_not_look_like_padding_are_never_taken_for_it():
    model = make_model(RecurrentPPO).learn(16 * 3)
    samples = next(model.rollout_buffer.get(48))
    assert not samples.mask.all()
    observations, actions = torch.randn_like(samples.observations), samples.actions.flatten()
    arguments = observations, actions, samples.lstm_states, samples.episode_starts
    with torch.no_grad():
        results = model.policy.evaluate_actions(*arguments), model.policy._evaluate(*arguments)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_a_state_is_kept_for_every_segment_and_every_cut_through_one():
    store = StateStore(steps=10, num_envs=4, batch_size=15, epochs=2, shared=True)
    cuts = {(split + k) % 40 for split in store.splits for k in (0, 15, 30)}
    assert set(store.places.tolist()) == cuts | {0, 10, 20, 30}


def test_pieces_start_from_the_states_before_their_first_steps():
    store = StateStore(steps=4, num_envs=3, batch_size=5, epochs=1, shared=True)
    for step in range(4):
        # The state before step t of environment n says so.
        state = torch.stack((torch.full((3,), float(step)), torch.arange(3.0)))
        store.add(step, RNN(state))
    begin = store.splits[0]
    pieces = store.pieces(begin, 5).pi
    first = [begin, *range(begin - begin % 4 + 4, begin + 5, 4)]
    expected = [[float(place % 4), float(place % 12 // 4)] for place in first]
    assert pieces.state.tolist() == expected
    assert len(pieces.position) == 5


class RNN:
    """The pair of a one-number state for both networks."""

    def __init__(self, state):
        pair = (state[0].view(1, 3, 1), state[1].view(1, 3, 1))
        self.pi = self.vf = pair


def test_the_buffer_stores_a_small_part_of_the_states():
    kwargs = {"width": 64}
    stock, lean = (
        algorithm(
            BeliefPolicy,
            random_envs(OBSERVATIONS["box"], ACTIONS["discrete"], 8),
            n_steps=64,
            batch_size=128,
            n_epochs=2,
            policy_kwargs=kwargs,
        ).learn(64 * 8)
        for algorithm in BOTH
    )
    names = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
    state_bytes = 4 * stock.policy.lstm_actor.memory.state_size
    stored = 64 * 8 * state_bytes
    assert lean.rollout_buffer.store.nbytes * 25 < stored
    assert sum(getattr(lean.rollout_buffer, name).nbytes for name in names) == 0
    assert lean.rollout_buffer.nbytes * 12 < stored
    # The stock buffer has handles only; the states are kept once.
    assert sum(getattr(stock.rollout_buffer, name).nbytes for name in names) == 4 * 64 * 8 * 4
    assert stored <= stock.policy.lstm_actor.kept.nbytes <= 65 * 8 * state_bytes
    assert lean.policy.lstm_actor.kept.nbytes == 0


def test_a_change_of_the_minibatches_counts_from_the_next_rollout_on():
    lean = make_model(BeliefRecurrentPPO)
    lean.learn(16 * 3)
    lean.batch_size, lean.n_epochs = 48, 1
    lean.learn(16 * 3)
    with pytest.raises(ValueError, match=r"0 more of 48\. Change batch_size and n_epochs before"):
        next(lean.rollout_buffer.get(48))


def test_a_policy_of_another_kind_is_refused():
    env = random_envs(OBSERVATIONS["box"], ACTIONS["discrete"])
    with pytest.raises(
        ValueError, match=r"policy is RecurrentActorCritic.*sb3_contrib\.RecurrentP"
    ):
        BeliefRecurrentPPO(MlpLstmPolicy, env)


def test_a_window_longer_than_the_rollout_is_refused():
    with pytest.raises(ValueError, match=r"window is 17.*n_steps is 16"):
        make_model(BeliefRecurrentPPO, memory="window", window=17)
