"""Watch an agent's belief through one episode: `python examples/watch_the_belief.py [RUN]`.

Without a run it first trains a small agent on the sequential test: is the hidden sign + or -, seen
through noise of unknown strength, and when is it sure enough to say so?
"""

from __future__ import annotations

import sys

import gymnasium
import numpy as np

import doxastic

ACTIONS = ("wait", "says -", "says +")


def watch(run: str, noise: float, seed: int) -> float:
    """Print one episode of the sequential test and return what it earned."""
    agent = doxastic.load(run)
    env = gymnasium.make("doxastic/SequentialTest-v0", variant="hard", noise=noise)
    observation, _ = env.reset(seed=seed)
    state, start, done, earned = None, True, False, 0.0
    print(f"noise {noise}\n step  observed  evidence  deviation  action")
    for step in range(1, 41):
        belief = agent.belief(observation, state, [start])
        action, state = agent.predict(observation, state, [start])
        print(
            f"{step:5d}  {observation[0]:8.2f}  {np.median(belief.evidence):8.2f}  "
            f"{np.median(np.sqrt(belief.variance)):9.3f}  {ACTIONS[int(action)]}"
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        earned, start, done = earned + float(reward), False, terminated or truncated
        if done:
            break
    print(f"return {earned:.2f}\n")
    return earned


if __name__ == "__main__":
    trained = sys.argv[1] if len(sys.argv) > 1 else doxastic.train("sequential-test-hard")
    for level in (0.25, 1.0, 4.0):
        watch(str(trained), level, seed=1)
