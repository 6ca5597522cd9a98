import numpy as np
import pytest
import torch
from gymnasium import spaces
from replay import ReplayedRandom, assert_same

from doxastic.envs import NOISE_KINDS, NumpyRandom
from doxastic.envs.corruption import make_corruption

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def draws(seed=0):
    return NumpyRandom(np.random.default_rng(seed))


def corrupted(kind, level, observation, space=VECTOR, random=None):
    """Return what the first observation becomes, and what the noise remembers."""
    random = random or draws()
    corruption = make_corruption(kind, (space,), (level,))
    levels = np.full(len(observation), float(level))
    memory = corruption.start((observation,), levels, random)
    return corruption.apply((observation,), levels, memory, random)[0], memory


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_the_level_is_the_standard_deviation(kind):
    clean = np.full((200_000, 2), 3.0)
    noise = corrupted(kind, 0.5, clean)[0] - clean
    # The fourth moment of Student's t with 3 degrees of freedom is infinite: its sample
    # deviation converges slowly.
    assert noise.std() == pytest.approx(0.5, rel=0.05 if kind == "student" else 0.01)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0, abs=0.02)


def test_student_noise_has_the_quantiles_of_three_degrees_of_freedom():
    from scipy import stats

    clean = np.zeros((100_000, 2))
    noise = corrupted("student", 2.0, clean)[0].ravel()
    expected = stats.t(df=3, scale=2.0 / np.sqrt(3.0))
    assert stats.kstest(noise, expected.cdf).pvalue > 0.01


def test_a_bias_stays_and_other_noise_does_not():
    clean, level = np.zeros((50, 2)), np.ones(50)
    for kind, stays in (("gaussian", False), ("student", False), ("bias", True)):
        random = draws()
        corruption = make_corruption(kind, (VECTOR,), (1.0,))
        memory = corruption.start((clean,), level, random)
        (first,) = corruption.apply((clean,), level, memory, random)
        (second,) = corruption.apply((clean,), level, memory, random)
        assert np.array_equal(first, second) == stays


@pytest.mark.parametrize(
    ("space", "clean", "blank"),
    [
        (VECTOR, np.ones((4000, 2)), 0.0),
        (spaces.Box(0.5, 2.0, (2,)), np.ones((4000, 2)), 0.5),
        (spaces.Box(np.float32([-3, 0]), np.float32([-1, 2])), np.full((4000, 2), -2.0), (-1, 0)),
        (spaces.Discrete(5, start=2), np.full(4000, 4), 2),
        (spaces.MultiDiscrete([3, 4], start=[1, 0]), np.full((4000, 2), 2), (1, 0)),
        (spaces.MultiBinary(2), np.ones((4000, 2), np.int8), 0),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), np.full((4000, 4, 4, 3), 7, np.uint8), 0),
    ],
)
def test_flicker_blanks_whole_observations_with_its_probability(space, clean, blank):
    seen, _ = corrupted("flicker", 0.3, clean, space)
    rows = seen.reshape(4000, -1)
    dropped = np.all(rows == np.broadcast_to(np.ravel(blank), rows.shape), axis=1)
    kept = np.all(rows == clean.reshape(4000, -1), axis=1)
    assert np.all(dropped ^ kept)
    assert dropped.mean() == pytest.approx(0.3, abs=0.03)
    assert seen.dtype == clean.dtype


def test_flicker_blanks_all_entries_at_once():
    leaves = (np.ones((500, 2)), np.full(500, 3))
    corruption = make_corruption("flicker", (VECTOR, spaces.Discrete(4)), (0.5,))
    vector, symbol = corruption.apply(leaves, np.full(500, 0.5), {}, draws())
    np.testing.assert_array_equal(vector[:, 0] == 0, symbol == 0)


def test_a_delay_repeats_the_first_observation_then_lags_behind():
    corruption = make_corruption("delay", (VECTOR,), (0.0, 1.0, 3.0))
    level = np.array([0.0, 1.0, 3.0])

    def clean(step):
        return (np.full((3, 2), float(step)),)

    memory = corruption.start(clean(0), level, draws())
    seen = [corruption.apply(clean(0), level, memory, draws())[0][:, 0]]
    for step in range(1, 6):
        memory = corruption.advance(memory, clean(step))
        seen.append(corruption.apply(clean(step), level, memory, draws())[0][:, 0])
    np.testing.assert_array_equal(
        np.stack(seen, axis=1), [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 1, 2]]
    )


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_level_of_zero_changes_nothing(kind):
    clean = np.random.default_rng(0).normal(size=(20, 2))
    np.testing.assert_array_equal(corrupted(kind, 0.0, clean)[0], clean)


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_sums_are_rounded_and_clipped_to_the_space(kind):
    space = spaces.Box(np.array([0, -5]), np.array([9, 100]), dtype=np.int64)
    seen, _ = corrupted(kind, 20.0, np.full((1000, 2), 4), space)
    np.testing.assert_array_equal(seen, np.rint(seen))
    assert (seen.min(0) == [0, -5]).all() and seen[:, 0].max() == 9 and seen[:, 1].max() > 30


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_only_numbers_get_what_is_added(kind):
    leaves = (np.zeros((9, 2)), np.full(9, 3))
    corruption = make_corruption(kind, (VECTOR, spaces.Discrete(4)), (1.0,))
    random = draws()
    memory = corruption.start(leaves, np.ones(9), random)
    vector, symbol = corruption.apply(leaves, np.ones(9), memory, random)
    assert np.all(vector != 0)
    assert symbol is leaves[1]


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_numpy_and_torch_agree_given_the_same_draws(kind):
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    levels = (0.0, 1.0)
    corruption = make_corruption(kind, (space,), levels)
    ours, theirs = draws(1), ReplayedRandom(np.random.default_rng(1))
    level = np.array([0.0, 1.0, 1.0, 0.0])
    clean = np.random.default_rng(2).uniform(-1, 1, (5, 4, 2))
    x = corruption.start((clean[0],), level, ours)
    y = corruption.start((torch.from_numpy(clean[0]),), torch.from_numpy(level), theirs)
    for o in clean:
        x, y = corruption.advance(x, (o,)), corruption.advance(y, (torch.from_numpy(o),))
        seen = corruption.apply((o,), level, x, ours)[0]
        tensor = corruption.apply((torch.from_numpy(o),), torch.from_numpy(level), y, theirs)[0]
        assert_same("memory", x, y, 1e-15)
        assert_same("observation", seen, tensor, 1e-15)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_arguments_are_left_alone(kind):
    clean, level = np.ones((6, 2)), np.ones(6)
    corruption = make_corruption(kind, (VECTOR,), (1.0,))
    random = draws()
    memory = corruption.start((clean,), level, random)
    kept = {name: array.copy() for name, array in memory.items()}
    corruption.advance(memory, (2 * clean,))
    corruption.apply((clean,), level, memory, random)
    assert (clean == 1).all() and (level == 1).all()
    assert all(np.array_equal(memory[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_symbols_cannot_have_what_is_added(kind):
    with pytest.raises(ValueError, match=r'needs a Box observation.*Discrete\(3\).*"flicker"'):
        make_corruption(kind, (spaces.Discrete(3),), (0.1,))


@pytest.mark.parametrize("kind", ["flicker", "delay"])
def test_text_cannot_be_dropped_or_delayed(kind):
    with pytest.raises(ValueError, match="NumericEntries"):
        make_corruption(kind, (VECTOR, spaces.Text(4)), (1.0,))
