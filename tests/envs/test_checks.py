import math
import re

import numpy as np
import pytest

from doxastic.envs.checks import whole
from doxastic.envs.registration import TASKS

# Every argument that counts something, of every task.
COUNTS = {
    "Acrobot": ("horizon",),
    "Autoencode": ("decks",),
    "Battleship": ("size",),
    "CartPole": ("horizon",),
    "Concentration": ("decks",),
    "Copy": ("length", "distractors", "symbols"),
    "CountRecall": ("decks",),
    "HigherLower": ("decks",),
    "LightDark": ("horizon",),
    "LinearGaussian": ("horizon",),
    "MineSweeper": ("size", "mines"),
    "NoisyBandit": ("arms", "horizon"),
    "Pendulum": ("horizon",),
    "RepeatFirst": ("decks",),
    "RepeatPrevious": ("decks", "k"),
    "SequentialTest": ("horizon",),
    "TMaze": ("length", "horizon"),
    "Tiger": ("horizon",),
}
CASES = [(task, name) for task, names in COUNTS.items() for name in names]


@pytest.mark.parametrize("value", [3, 3.0, np.int8(3), np.float32(3)])
def test_whole_numbers_of_any_type_become_ints(value):
    number = whole("length", value, 3)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, True, "3", None, [3], np.bool_(1)])
def test_what_is_no_whole_number_is_named(value):
    message = re.escape(f"length is {value!r}; expected a whole number.")
    with pytest.raises(ValueError, match=message):
        whole("length", value, 1)


def test_the_least_is_named_with_what_is_counted():
    with pytest.raises(ValueError, match=r"length is 0; expected at least 1 step\."):
        whole("length", 0, 1, "step")
    with pytest.raises(ValueError, match=r"length is -1; expected at least 0\."):
        whole("length", -1, 0)


def test_every_task_is_here():
    assert {f"doxastic/{name}-v0" for name in COUNTS} == set(TASKS)


@pytest.mark.parametrize("value", [14.5, math.nan, True, "14"])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_what_counts_nothing_whole_is_refused(task, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a whole number"):
        TASKS[f"doxastic/{task}-v0"](**{name: value})
