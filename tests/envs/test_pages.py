"""What the pages of docs/envs/ show runs, and does what they say."""

import re
from pathlib import Path

import numpy as np

PAGES = Path(__file__).parents[2] / "docs" / "envs"


def test_the_belief_of_the_confidence_page_is_that_of_the_episodes_it_started_with():
    (block,) = re.findall(
        r"^```python\n(.*?)^```$",
        (PAGES / "confidence.md").read_text(encoding="utf-8"),
        re.M | re.S,
    )
    names = {}
    exec(compile(block, "docs/envs/confidence.md", "exec"), names)
    belief, policy, envs = names["belief"], names["policy"], names["env"]
    assert not np.any(names["terminated"] | names["truncated"])
    assert policy.filter.read(belief).noise.shape == (64, 3)
    # One step more ends the episodes.
    assert envs.step(policy.act(belief))[2].all()
