"""Act with an exported agent: `python examples/control_loop.py RUN/policy.onnx [ENVIRONMENT ID]`.

It needs numpy, onnxruntime and the environment, here Gymnasium's; neither torch nor doxastic.
Write the file with `doxastic export RUN`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime


class Controller:
    """An agent whose memory is carried from step to step.

    Args:
        path: An `.onnx` file of `doxastic export`, with its description beside it.
    """

    def __init__(self, path: str | Path) -> None:
        options = onnxruntime.SessionOptions()
        # One step of a small network is less work than waking a second thread.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.description = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
        self.inputs = self.description["inputs"]
        self.output_names = [port["name"] for port in self.description["outputs"]]
        self.reset()

    def reset(self) -> None:
        """Forget everything: an episode starts with the next observation."""
        size = self.description["memory"]["state_size"]
        self.state, self.starts = np.zeros((1, size), np.float32), True

    def step(self, observation: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Return every output for one observation of one environment, without the batch.

        `action` is the most probable one, in the units of the environment.
        """
        feed = {"state": self.state, "episode_start": np.array([self.starts])}
        parts = named_parts(observation)
        for port in self.inputs[:-2]:
            feed[port["name"]] = np.asarray(parts[port["name"]], port["dtype"])[None]
        outputs = dict(zip(self.output_names, self.session.run(None, feed), strict=True))
        self.state, self.starts = outputs.pop("next_state"), False
        return {name: output[0] for name, output in outputs.items()}


def named_parts(observation: Any, name: str = "observation") -> dict[str, Any]:
    """Return an observation by the names of its inputs, "observation.<key>" for items of a Dict."""
    if not isinstance(observation, dict):
        return {name: observation}
    parts: dict[str, Any] = {}
    for key, part in observation.items():
        parts |= named_parts(part, f"{name}.{key}")
    return parts


def run_episode(controller: Controller, env: gymnasium.Env[Any, Any], seed: int) -> float:
    """Return the return of one episode."""
    observation, _ = env.reset(seed=seed)
    controller.reset()
    total, is_over = 0.0, False
    while not is_over:
        action = controller.step(observation)["action"]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, is_over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    env = gymnasium.make(sys.argv[2] if len(sys.argv) > 2 else "CartPole-v1")
    loop = Controller(sys.argv[1])
    for seed in range(5):
        print(f"episode {seed}: return {run_episode(loop, env, seed):g}")
