import numpy as np
import pytest

from doxastic.envs import NumpyRandom
from doxastic.envs.tasks.sensors import noisy_reading, seen_entries

BOUNDS = ((-1.0, -np.inf, 0.0), (1.0, np.inf, 0.5))


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_readings_are_the_entries_plus_scaled_draws_clipped_to_their_bounds(n):
    seen = np.random.default_rng(0).normal(size=(n, 3))
    level = np.linspace(0, 2, n)
    read = noisy_reading(seen, level, BOUNDS, NumpyRandom(np.random.default_rng(1)))
    epsilon = np.random.default_rng(1).standard_normal((n, 3))
    np.testing.assert_allclose(read, np.clip(seen + level[:, None] * epsilon, *BOUNDS))


def test_an_unknown_part_of_the_state_is_named():
    assert seen_entries("full", {"full": 3}) == 3
    with pytest.raises(ValueError, match=r"observed is 'half'; expected one of \['full'\]"):
        seen_entries("half", {"full": 3})
