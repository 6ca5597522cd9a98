"""sb3-contrib's LSTM policy without its loop over time.

Its buffer cuts sequences at episode starts, so that a state is cleared before their first step and
nowhere else: to clear it there and call the LSTM once is exact. sb3-contrib steps through time
as soon as a minibatch holds an episode start.
"""

from __future__ import annotations

from typing import Any

from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from torch import Tensor


class OneCallLstmPolicy(MlpLstmPolicy):
    """`MlpLstmPolicy` with one call of the LSTM for a minibatch."""

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: Any
    ) -> tuple[Tensor, Any]:
        """Return outputs `[B * T, F]` and the states after the last step."""
        batch = lstm_states[0].shape[1]
        keep = (1.0 - episode_starts.view(batch, -1)[:, 0]).view(1, batch, 1)
        sequence = features.view(batch, -1, lstm.input_size).transpose(0, 1)
        out, states = lstm(sequence, (keep * lstm_states[0], keep * lstm_states[1]))
        return out.transpose(0, 1).flatten(0, 1), states
