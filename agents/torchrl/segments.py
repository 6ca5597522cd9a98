"""Rollouts cut into segments that store the memory's state once."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey


def to_segments(
    data: TensorDictBase, steps: int, *, state_key: NestedKey = "memory_state"
) -> TensorDict:
    """Return a rollout `[..., T]` as a TensorDict of batch size `[N * T / steps]`.

    Its entries are `[N * T / steps, steps, ...]`, copies; the state is `[N * T / steps, S]`, the
    one before the first step of each segment. A rollout stores the state and the next state of
    every step, `2 T` of them; segments store `T / steps`. Draw minibatches over the batch, and run
    losses under `set_recurrent_mode(True)`.

    Next states are left out: estimate advantages or value targets first.

        data = gae(data)
        buffer.extend(to_segments(data, 32))

    Args:
        data: What a collector returned; time is its last batch dimension.
        steps: Steps of a segment; must divide T.
        state_key: Entry of the state; `MemoryModule.state_key`.

    Raises:
        KeyError: If there is no state.
        ValueError: If `steps` does not divide T.
    """
    if not data.batch_size or steps < 1 or data.batch_size[-1] % steps:
        raise ValueError(
            f"steps is {steps} for a rollout of batch size {list(data.batch_size)}; expected a "
            "divisor of its last dimension, which is time."
        )
    state = data.get(state_key, None)
    if state is None:
        raise KeyError(
            f"the rollout has no entry {state_key!r}. Pass state_key=module.state_key, and see "
            "that the environment has module.make_tensordict_primer()."
        )
    path = (state_key,) if isinstance(state_key, str) else tuple(state_key)
    rest = data.exclude(path, ("next", *path)).reshape(-1, steps)
    segments: TensorDict = rest.contiguous()
    # Time is no longer a dimension of the batch: the state has none.
    segments.auto_batch_size_(batch_dims=1)
    return segments.set(path, state.flatten(0, -2)[::steps].clone())
