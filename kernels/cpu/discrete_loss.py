"""PPO's loss for Discrete actions on the CPU, with its gradient: one pass over the steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from doxastic.kernels.cpu.common import ONE, TWO, ZERO, compiled


@compiled
def _loss(
    logits, value, action, old, advantage, target, clip, value_weight, entropy_weight,
    dlogits, dvalue, measured,
):  # fmt: skip
    N, A = logits.shape
    share = ONE / np.float32(N)
    policy, error, entropy, divergence, outside = 0.0, 0.0, 0.0, 0.0, 0.0
    for n in range(N):
        highest = logits[n, 0]
        for a in range(1, A):
            highest = max(highest, logits[n, a])
        total = ZERO
        for a in range(A):
            dlogits[n, a] = np.exp(logits[n, a] - highest)
            total += dlogits[n, a]
        norm = highest + np.log(total)
        negative_entropy = ZERO
        for a in range(A):
            dlogits[n, a] /= total
            negative_entropy += dlogits[n, a] * (logits[n, a] - norm)
        taken = action[n]
        log_ratio = logits[n, taken] - norm - old[n]
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, ONE - clip), ONE + clip)
        gain, clipped_gain = ratio * advantage[n], clipped * advantage[n]
        pull = share * gain if gain <= clipped_gain else ZERO
        for a in range(A):
            change = share * entropy_weight * (logits[n, a] - norm - negative_entropy)
            dlogits[n, a] *= change + pull
        dlogits[n, taken] -= pull
        miss = value[n] - target[n]
        dvalue[n] = TWO * share * value_weight * miss
        policy -= float(min(gain, clipped_gain))
        error += miss * miss
        entropy -= float(negative_entropy)
        divergence += ratio - ONE - log_ratio
        outside += 0.0 if ratio == clipped else 1.0
    measured[0], measured[1], measured[2] = policy, value_weight * error, entropy
    measured[3], measured[4] = divergence, outside
    measured /= N


def discrete_loss(
    logits: Tensor, value: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor,
    target: Tensor, clip: float, value_coefficient: float, entropy_coefficient: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the five measures of `agents.losses.Losses` but the total, and two gradients.

    These are the gradients of the total, of the logits `[N, A]` and of the values `[N]`. All
    tensors are float32 on the CPU, the actions int64 and below A.

    Args:
        logits: `[N, A]`.
        value: `[N]`, like all the following.
        action: The actions taken.
        old_log_prob: Their log-probabilities then.
        advantage: Their advantages.
        target: The value targets.
        clip: Half the interval of the probability ratio.
        value_coefficient: Weight of the squared error of the value.
        entropy_coefficient: Weight of the entropy.
    """
    dlogits, dvalue, measured = (
        torch.empty_like(logits),
        torch.empty_like(value),
        logits.new_empty(5),
    )
    tensors = (logits, value, action, old_log_prob, advantage, target)
    arrays = [x.detach().contiguous().numpy() for x in tensors]
    weights = (np.float32(x) for x in (clip, value_coefficient, entropy_coefficient))
    _loss(*arrays, *weights, *(x.numpy() for x in (dlogits, dvalue, measured)))
    return measured, dlogits, dvalue
