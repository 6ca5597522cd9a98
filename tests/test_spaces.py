"""Spaces as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces

from doxastic.spaces import check_same_space, space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (3,)),
        spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([np.inf, 1.5], np.float32)),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Box(-1.0, 1.0, ()),
        spaces.Discrete(4),
        spaces.Discrete(4, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiDiscrete([2, 3], start=[1, -4]),
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
        spaces.MultiBinary(5),
        spaces.Dict({"image": spaces.Box(0, 1, (2, 2)), "goal": spaces.Discrete(3)}),
        spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    ],
    ids=str,
)
def test_a_space_survives_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert space_from_json(json.loads(text)) == space


def test_a_description_without_starts_counts_from_zero():
    data = {"kind": "MultiDiscrete", "nvec": [2, 3]}
    assert space_from_json(data) == spaces.MultiDiscrete([2, 3])


def test_a_space_without_description_is_refused():
    with pytest.raises(ValueError, match=r"cannot describe the space"):
        space_to_json(spaces.Text(3))


def test_another_space_is_refused():
    with pytest.raises(ValueError, match=r"observation space is .* trained with"):
        check_same_space("observation", spaces.Box(0, 1, (3,)), spaces.Box(0, 1, (4,)))
