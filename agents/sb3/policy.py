"""Policies for sb3-contrib's RecurrentPPO that remember with any of doxastic's memories."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from doxastic.agents.action_heads import ActionHead
from doxastic.agents.agent import Agent
from doxastic.agents.config import EncoderConfig
from doxastic.agents.sb3.categorical import LeanCategorical
from doxastic.agents.sb3.checks import (
    check_actions,
    check_observations,
    check_run,
    refuse_off_policy,
    refuse_without_states,
)
from doxastic.agents.sb3.encoder import ObservationEncoder
from doxastic.agents.sb3.memories import MemoryChoice, chosen_memory
from doxastic.agents.sb3.recurrence import RecurrentMemory, is_handle
from doxastic.agents.sb3.runs import HeadDistribution, RunBody, RunValue, load_agent
from doxastic.agents.sb3.segments import Rows, Segments, rejoined
from doxastic.agents.trees import tree_map


class BeliefPolicy(RecurrentActorCriticPolicy):
    """An actor-critic over any memory, for vectors and symbols; SB3's body, heads and actions.

    ```python
    RecurrentPPO(BeliefPolicy, env, policy_kwargs={"memory": "belief", "width": 64}).learn(100_000)
    ```

    Observation -> encoder -> memory -> SB3's networks of policy and value. One memory serves
    both and learns from both losses, or each has its own. A minibatch runs in one call of the
    memory, with resets inside.

    Args:
        observation_space: Observations of one environment.
        action_space: Actions of one environment.
        lr_schedule: Learning rate by the share of training that remains.
        memory: `belief`, `rwkv7` (the same core without a belief), `gru`, `lstm`, `window`,
            `none`; or a `MemoryConfig` for all its sizes; or a function from the width of the
            inputs to a `Memory`.
        width: Width of the encoder and of a memory that is given by name.
        window: Steps that the memory `window` sees.
        share_memory: Whether policy and value have one memory.
        run: A run folder of doxastic, or its agent: its networks and weights are taken, and
            memory, width, window and net_arch are not read.
        net_arch: As in SB3; by default one layer of 64 each for policy and value.
        activation_fn: As in SB3, as everything below.
        ortho_init: Encoder and memory keep their own initialisation.
        use_sde: As in SB3; not with a run.
        log_std_init: As in SB3.
        full_std: As in SB3.
        use_expln: As in SB3.
        squash_output: As in SB3.
        features_extractor_class: By default doxastic's encoder, `ObservationEncoder`.
        features_extractor_kwargs: Its arguments.
        share_features_extractor: Whether policy and value have one; needed to share the memory.
        normalize_images: Whether bytes are divided by 255.
        optimizer_class: As in SB3.
        optimizer_kwargs: By default, for Adam, an eps of 1e-5 and the fused update.

    Raises:
        ValueError: If a space does not suit this policy or the run, or options contradict.
    """

    kind: ClassVar[str] = "BeliefPolicy"

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Schedule,
        *,
        memory: MemoryChoice = "belief",
        width: int = 64,
        window: int = 16,
        share_memory: bool = True,
        run: str | Path | Agent | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = ObservationEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_observations(type(self).__name__, self.kind, observation_space)
        check_actions(action_space)
        if share_memory and not share_features_extractor:
            raise ValueError(
                "share_features_extractor is False but share_memory is True; one memory reads one "
                "features extractor. Set share_memory=False as well."
            )
        if run is not None and use_sde:
            raise ValueError(
                "use_sde is True but a run is given; expected one of them, for the actions of a "
                "run have no state-dependent noise. Set use_sde=False."
            )
        self.memory_choice, self.width, self.window = memory, width, window
        self.shares_memory, self.run = share_memory or run is not None, run
        agent = None if run is None else load_agent(run)
        if agent is not None:
            check_run(agent, observation_space, action_space)
            # What was learnt is kept: SB3's initialisation would strike the run's body.
            share_features_extractor, ortho_init = True, False
            width = agent.policy.encoder.output_size
            features_extractor_class, features_extractor_kwargs = ObservationEncoder, None
        self._agent = agent
        if features_extractor_class is ObservationEncoder and features_extractor_kwargs is None:
            scale = None if normalize_images else 1.0
            features_extractor_kwargs = {"config": EncoderConfig(width=width, image_scale=scale)}
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            {"pi": [64], "vf": [64]} if net_arch is None else net_arch,
            activation_fn,
            ortho_init,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            squash_output,
            features_extractor_class,
            features_extractor_kwargs,
            share_features_extractor,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            # The smallest of LSTMs, replaced at once by the memories.
            lstm_hidden_size=1,
            shared_lstm=self.shares_memory,
            enable_critic_lstm=not self.shares_memory,
        )
        self._replace_lstm(lr_schedule)

    @classmethod
    def from_run(cls, run: str | Path | Agent) -> Self:
        """Return the policy of a trained run, which acts as `doxastic.load(run)` does.

        To train it further, give the run to the algorithm: `RecurrentPPO(BeliefPolicy, env,
        policy_kwargs={"run": run})`.
        """
        agent = load_agent(run)
        return cls(agent.observation_space, agent.action_space, lambda _: 0.0, run=agent)

    def forward(  # type: ignore[override]
        self,
        obs: Any,
        lstm_states: RNNStates | None = None,
        episode_starts: Tensor | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Return actions, values, log-probabilities and the states after these observations."""
        if lstm_states is None or episode_starts is None:
            refuse_without_states(type(self).__name__)
        pi_inputs, vf_inputs = self._inputs(obs)
        pi_features, pi = self.lstm_actor.step(pi_inputs, lstm_states.pi, episode_starts)
        vf_features, vf = pi_features, pi
        if self.lstm_critic is not None:
            vf_features, vf = self.lstm_critic.step(vf_inputs, lstm_states.vf, episode_starts)
        latent_pi, latent_vf = self._latents(pi_features, vf_features)
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *(self.action_space.shape or ())))
        return actions, self.value_net(latent_vf), log_prob, RNNStates(pi, vf)

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: Any,
        actions: Tensor,
        lstm_states: RNNStates | None = None,
        episode_starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the values, the log-probabilities of `actions`, and the entropies."""
        if lstm_states is None or episode_starts is None:
            refuse_without_states(type(self).__name__)
        if actions.dtype == torch.int8:
            # The bits of a MultiBinary space, which SB3's distribution takes as floats only.
            actions = actions.float()
        if self.training:
            # An update: the states of this rollout are forgotten when the next one begins.
            self.lstm_actor.end_rollout(lstm_states.pi)
            if self.lstm_critic is not None:
                self.lstm_critic.end_rollout(lstm_states.vf)
        rows = self._rows(obs, lstm_states, episode_starts)
        if rows is None:
            return self._evaluate(obs, actions, lstm_states, episode_starts)
        steps, states = rows.steps, self._row_states(rows, lstm_states)
        values, log_prob, entropy = self._evaluate(
            tree_map(lambda x: x[steps], obs), actions[steps], states, episode_starts[steps]
        )
        number = len(episode_starts)
        entropy = None if entropy is None else _spread(entropy, steps, number)
        return _spread(values, steps, number), _spread(log_prob, steps, number), entropy

    def __getattr__(self, name: str) -> Any:
        """Return a submodule; what SAC, TD3 or DQN look for first is refused with the remedy."""
        if name in ("actor", "critic", "q_net"):
            refuse_off_policy(type(self).__name__, name)
        return super().__getattr__(name)

    def _evaluate(
        self, obs: Any, actions: Tensor, states: RNNStates, starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `evaluate_actions` returns, of a minibatch that is run as it is."""
        pi_inputs, vf_inputs = self._inputs(obs)
        pi = vf = self.lstm_actor.sequences(pi_inputs, states.pi, starts)
        if self.lstm_critic is not None:
            vf = self.lstm_critic.sequences(vf_inputs, states.vf, starts)
        latent_pi, latent_vf = self._latents(pi, vf)
        distribution = self._get_action_dist_from_latent(latent_pi)
        return self.value_net(latent_vf), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(  # type: ignore[override]
        self,
        obs: Any,
        lstm_states: tuple[Tensor, ...] | None = None,
        episode_starts: Tensor | None = None,
    ) -> tuple[Distribution, tuple[Tensor, ...]]:
        """Return the distribution of actions and the states after these observations."""
        if lstm_states is None or episode_starts is None:
            refuse_without_states(type(self).__name__)
        features = self._encode(obs, self.pi_features_extractor)
        features, states = self.lstm_actor(features, lstm_states, episode_starts)
        latent = self.mlp_extractor.forward_actor(features)
        return self._get_action_dist_from_latent(latent), states

    def predict_values(
        self,
        obs: Any,
        lstm_states: tuple[Tensor, ...] | None = None,
        episode_starts: Tensor | None = None,
    ) -> Tensor:
        """Return the values `[B, 1]` of observations; the states stay what they were."""
        if lstm_states is None or episode_starts is None:
            refuse_without_states(type(self).__name__)
        features = self._encode(obs, self.vf_features_extractor)
        memory = self.lstm_actor if self.lstm_critic is None else self.lstm_critic
        features, _ = memory(features, lstm_states, episode_starts)
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(features))
        return values

    def _rows(self, obs: Any, states: RNNStates, starts: Tensor) -> Rows | None:
        """Return the rows of a minibatch of padded sequences; None if all of it has to be run.

        sb3-contrib's padding is zeros; and no episode starts there.
        """
        if isinstance(states.pi, Segments) or not is_handle(states.pi):
            return None
        number = states.pi[0].flatten()
        starts_of = (starts > 0.5).view(len(number), -1)
        rows = rejoined(starts_of, number, self.lstm_actor.kept.number)
        if rows is None:
            return None
        parts = [starts, *(obs.values() if isinstance(obs, dict) else [obs])]
        return None if any(part.index_select(0, rows.padding).any() for part in parts) else rows

    def _row_states(self, rows: Rows, states: RNNStates) -> RNNStates:
        """Return where the rows start, as `RNNStates` of `Segments`."""
        pi: Any = rows.segments(self.lstm_actor.read(rows.of(states.pi)))
        vf: Any = pi
        if self.lstm_critic is not None:
            vf = rows.segments(self.lstm_critic.read(rows.of(states.vf)))
        return RNNStates(pi, vf)

    def _inputs(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Return what the memories of policy and value read; one tensor where they share it."""
        inputs = self._encode(obs, self.pi_features_extractor)
        if self.share_features_extractor:
            return inputs, inputs
        return inputs, self._encode(obs, self.vf_features_extractor)

    def _latents(self, pi: Tensor, vf: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the policy head and the value head read of the memories' features."""
        if pi is vf:
            latents: tuple[Tensor, Tensor] = self.mlp_extractor(pi)
            return latents
        return self.mlp_extractor.forward_actor(pi), self.mlp_extractor.forward_critic(vf)

    def _encode(self, obs: Any, extractor: BaseFeaturesExtractor) -> Tensor:
        """Return the memory's inputs `[B, C]`; doxastic's encoder takes observations raw."""
        if not isinstance(extractor, ObservationEncoder):
            space = self.observation_space
            obs = preprocess_obs(obs, space, normalize_images=self.normalize_images)
        inputs: Tensor = extractor(obs)
        return inputs

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if isinstance(self.action_net, ActionHead):
            return HeadDistribution(self.action_net, latent_pi)
        if isinstance(self.action_dist, CategoricalDistribution):
            return LeanCategorical(self.action_net(latent_pi))
        return super()._get_action_dist_from_latent(latent_pi)

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the networks; the encoder keeps its initialisation, whose biases are not zero.

        The core normalises what it reads: of a linear map of the observation it would keep
        the direction alone.
        """
        encoders = [
            module
            for module in (self.pi_features_extractor, self.vf_features_extractor)
            if isinstance(module, ObservationEncoder)
        ]
        weights = [deepcopy(encoder.state_dict()) for encoder in encoders]
        super()._build(lr_schedule)
        for encoder, own in zip(encoders, weights, strict=True):
            encoder.load_state_dict(own)

    def _build_mlp_extractor(self) -> None:
        """Build the memories, too: the networks read the width of their features."""
        if self._agent is not None:
            self._memories = [self._agent.policy.memory]
            body: Any = RunBody(self._agent.policy)
            self.mlp_extractor = body
            return
        self._memories = [
            chosen_memory(self.memory_choice, self.features_dim, self.width, self.window)
            for _ in range(1 if self.shares_memory else 2)
        ]
        self.lstm_output_dim = self._memories[0].feature_size
        self.mlp_extractor = MlpExtractor(
            self.lstm_output_dim,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _replace_lstm(self, lr_schedule: Schedule) -> None:
        """Put the memories where the LSTM was, and everything under a new optimiser."""
        memories = [RecurrentMemory(memory) for memory in self._memories]
        self._memories = []
        self.lstm_actor: Any = memories[0]
        self.lstm_critic: Any = None if self.shares_memory else memories[1]
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.half_size)
        if self._agent is not None:
            self._take_heads(self._agent)
            self._agent = None
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _take_heads(self, agent: Agent) -> None:
        """Take encoder and heads of a trained agent; its memory and body are there already."""
        extractor: Any = self.features_extractor
        extractor.take(agent.policy.encoder, agent.normalizer, agent.observation_space)
        self.action_net = agent.policy.action_head
        value: Any = RunValue(agent.policy)
        self.value_net = value
        # Of the distribution that SB3 would have taken for a Box.
        if hasattr(self, "log_std"):
            del self.log_std

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            memory=self.memory_choice,
            width=self.width,
            window=self.window,
            share_memory=self.shares_memory,
            run=self.run,
            share_features_extractor=self.share_features_extractor,
        )
        return data


def _spread(x: Tensor, places: Tensor, number: int) -> Tensor:
    """Return `x` at its places among `number`, zeros elsewhere."""
    return x.new_zeros(number, *x.shape[1:]).index_copy(0, places, x)


class MultiInputBeliefPolicy(BeliefPolicy):
    """`BeliefPolicy` for Dict observations: an encoder for each entry."""

    kind = "MultiInputBeliefPolicy"


class CnnBeliefPolicy(BeliefPolicy):
    """`BeliefPolicy` for images of any size."""

    kind = "CnnBeliefPolicy"
