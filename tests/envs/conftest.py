"""Puts the helpers that stand in tests/ and beside these tests within reach of them."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
