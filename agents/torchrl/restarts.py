"""Sequences in which a memory starts again from states that are stored along the way."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from doxastic.memory.base import Memory

IS_INIT = "is_init"


def mark_next_restarts(batch: TensorDictBase) -> TensorDictBase:
    """Return the batch with the restarts of its observations at its next observations as well.

    `SliceSampler` marks where slices begin at the observations only. `GAE` carries the marks over;
    `DQNLoss`, `SACLoss` and others, whose targets come from the next observations, do not: there
    the memory would run on from one slice into the next.

        losses = loss(mark_next_restarts(buffer.sample()))

    Args:
        batch: Sequences with an entry `is_init`; `("next", "is_init")` is written.

    Raises:
        KeyError: If there is no `is_init`.
    """
    restart = batch.get(IS_INIT, None)
    if restart is None:
        raise KeyError(
            f"the batch has no entry {IS_INIT!r}; expected the marks of where sequences begin. "
            "Append torchrl.envs.InitTracker() to the environment and leave SliceSampler its "
            "init_key."
        )
    following = batch.get(("next", IS_INIT), torch.zeros_like(restart))
    return batch.set(("next", IS_INIT), following | restart)


def run_with_restarts(
    memory: Memory, x: Tensor, state: Tensor, restart: Tensor, following: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the features `[B, T, F]`, and `following` with the states after the last steps.

    Where every restart loads zeros, as in rollouts, it is a reset and takes one call. Otherwise the
    rows are cut at the restarts, and the pieces run side by side in at most `log2(T) + 1` calls.

    Args:
        memory: Any memory.
        x: Inputs `[B, T, C]`.
        state: Stored states `[B, T, S]`; read at the first step and at restarts.
        restart: `[B, T]` bool, false at the first step.
        following: States `[B, T, S]` after each step as far as known, written where pieces end.
    """
    if not state[restart].any():
        features, last = memory(x, state[:, 0], restart)
        following[:, -1] = last
        return features, following
    rows, time = restart.shape
    begins = restart.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)
    lengths = first.diff(append=first.new_tensor([rows * time]))
    features, last = _run_pieces(memory, x.flatten(0, 1), state.flatten(0, 1), first, lengths)
    following = following.flatten(0, 1).index_copy(0, first + lengths - 1, last)
    return features.unflatten(0, (rows, time)), following.unflatten(0, (rows, time))


def _run_pieces(
    memory: Memory, x: Tensor, state: Tensor, first: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the features `[N, F]` of all steps, and the state `[P, S]` after each piece.

    A piece of 21 steps runs as 16, 4 and 1: all pieces with a 16 in them at once, then all with an
    8, and so on. Nothing is padded, and the number of calls does not grow with the pieces.

    Args:
        memory: Any memory.
        x: Inputs `[N, C]` of all steps.
        state: Stored states `[N, S]`.
        first: The step at which each piece begins, `[P]`.
        lengths: The number of its steps, `[P]`.
    """
    carried, position = state[first], first.clone()
    features, order = [], []
    size = 1 << (int(lengths.max()).bit_length() - 1)
    while size:
        chosen = (lengths & size).nonzero().squeeze(1)
        if len(chosen):
            steps = position[chosen, None] + torch.arange(size, device=x.device)
            no_reset = torch.zeros_like(steps, dtype=torch.bool)
            out, after = memory(x[steps], carried[chosen], no_reset)
            carried = carried.index_copy(0, chosen, after)
            position[chosen] += size
            features.append(out.flatten(0, 1))
            order.append(steps.flatten())
        size //= 2
    return torch.cat(features)[torch.cat(order).argsort()], carried
