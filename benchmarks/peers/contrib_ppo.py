"""RecurrentPPO of sb3-contrib with the settings that all arms share."""

from __future__ import annotations

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from peers.environments import positions_only


def build_contrib(num_envs: int, segment_steps: int, width: int) -> RecurrentPPO:
    """Return RecurrentPPO as it comes, with its two LSTMs of one layer and 4 minibatches."""
    return RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([positions_only] * num_envs),
        learning_rate=1e-3,
        n_steps=segment_steps,
        batch_size=num_envs * segment_steps // 4,
        n_epochs=4,
        ent_coef=0.01,
        policy_kwargs={"lstm_hidden_size": width, "n_lstm_layers": 1, "net_arch": []},
        seed=0,
        device="cpu",
    )
