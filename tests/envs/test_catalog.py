"""The returns of the table are what the references compute; the quick ones are recomputed."""

import pytest

from doxastic.envs import Concentration, LinearGaussian, SequentialTest, Tiger, TMaze
from doxastic.envs.catalog import CATALOG
from doxastic.envs.references.games import concentration_value, higher_lower_value
from doxastic.envs.references.lqr import LinearGaussianSolution
from doxastic.envs.references.sequential_test import solve_sequential_test
from doxastic.envs.references.t_maze import solve_t_maze
from doxastic.envs.references.tiger import solve_tiger


def linear_gaussian():
    task = LinearGaussian()
    return LinearGaussianSolution(task).posterior_returns(task.noise, 100, seed=0).mean()


RECOMPUTED = {
    "Concentration": lambda: concentration_value(Concentration()),
    "HigherLower": lambda: higher_lower_value(copies=4),
    "LinearGaussian": linear_gaussian,
    "SequentialTest": lambda: (
        solve_sequential_test(SequentialTest(), means=81, spreads=51, nodes=15).value
    ),
    "TMaze": lambda: solve_t_maze(TMaze()).value,
    "Tiger": lambda: solve_tiger(Tiger()).value,
}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_a_return_of_the_table_is_the_computed_one(name):
    assert RECOMPUTED[name]() == pytest.approx(CATALOG[f"doxastic/{name}-v0"].reference, abs=1e-3)


def test_a_return_has_a_source_and_nothing_else_has():
    assert all((entry.reference is None) == (not entry.source) for entry in CATALOG.values())
