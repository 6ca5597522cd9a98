"""The gated write: what is believed before a step scales what the core replaces in it."""

from __future__ import annotations

from torch import Tensor, nn

from doxastic.kernels.belief_moments import belief_moments_features
from doxastic.memory.readouts import MomentsReadout, features_before

# The gate starts at sigmoid(2) = 0.88: open, with a slope to learn from.
_BIAS = 2.0


class WriteGate(nn.Module):
    """One factor in (0, 1) per head and step, from a belief about the memory's inputs.

    With (mean, variance)_t the decayed moments of linear maps of the inputs up to x_t, as
    `MomentsReadout` has them:

        g_t = sigmoid(W [mean_{t-1}, log deviation_{t-1}] + b)
        S_t = S_{t-1} diag(w_t) + g_t (v_t k~_t^T - (S_{t-1} kk_t)(kk_t alpha_t)^T)

    At 0 the core's state only decays: certain, the memory is protected; uncertain, it goes on
    writing. Before anything was seen the belief is the prior's. The belief is one of the inputs,
    not of the core's features: the gates of a whole segment are known before the core runs, and
    training stays parallel over time.

    Source:
        Reconstruction; the published abstract says that the belief gates the memory, not how.
    """

    def __init__(self, input_size: int, belief_size: int, heads: int) -> None:
        super().__init__()
        self.moments = MomentsReadout(input_size, belief_size)
        self.projection = nn.Linear(2 * belief_size, heads)
        nn.init.constant_(self.projection.bias, _BIAS)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates `[B, T, H]` and the moments after the last step `[B, 3, M]`.

        Args:
            x: The memory's inputs `[B, T, C]`.
            state: The moments before the first step, `[B, 3, M]`.
            reset: `[B, T]` bool.
        """
        raw, prior = self.moments.projection(x), self.moments.positive_prior
        features, last = belief_moments_features(raw, prior, state=state, reset=reset)
        before = features_before(features, state, reset, prior)
        # Of the weights' dtype again; moments are float32 at least.
        seen = before[..., : 2 * self.moments.size].to(raw.dtype)
        return self.projection(seen).sigmoid(), last
