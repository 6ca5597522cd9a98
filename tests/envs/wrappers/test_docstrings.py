import doctest
import importlib
import pkgutil

import pytest

from doxastic.envs import wrappers

MODULES = [module.name for module in pkgutil.iter_modules(wrappers.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_say(name):
    module = importlib.import_module(f"doxastic.envs.wrappers.{name}")
    assert doctest.testmod(module).failed == 0
