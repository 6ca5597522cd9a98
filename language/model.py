"""The language model: token embedding, RWKV-7 blocks, and a head over the vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from doxastic.language.config import LanguageConfig
from doxastic.language.deep_embed import CHANNEL_MIXES
from doxastic.memory.block import Block
from doxastic.memory.block_step import CoreStep, build_step, can_step
from doxastic.memory.state import CoreState, StateLayout

# The parts of a block's state, in the order of the layout.
_PARTS = ("time_shift", "wkv", "channel_shift")


class LanguageModel(nn.Module):
    """An RWKV-7 language model whose whole past is one state of constant size.

    `x = ln0(emb[token])`, a block after the other, `logits = head(ln_out(x))`. Parameters have the
    names and the initial values of RWKV-LM (RWKV-v7/train_temp/src/model.py); vectors are `[C]`.
    Weights may be of any floating dtype; the state is float32, always.

    Attributes:
        config: What the model is made of.
        layout: The state's parts: `<layer>.time_shift` `[C]`, `<layer>.wkv` `[H, V, K]`,
            `<layer>.channel_shift` `[C]`.
        checkpointing: Whether a block's inner results are computed again in the backward pass
            instead of being kept: less memory, a forward more.

    Args:
        config: What to build.

    Example:
        >>> model = LanguageModel(LanguageConfig(vocab_size=257, width=64))
        >>> logits, state = model(torch.tensor([[104, 105]]))
        >>> logits.shape, state.batch_size
        (torch.Size([1, 2, 257]), 1)
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        vocab, width = config.vocab_size, config.width
        self.emb = nn.Embedding(vocab, width)
        blocks = [_block(config, layer) for layer in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        gain = 0.5 * math.sqrt(vocab / width) if vocab > width else 0.5
        nn.init.orthogonal_(self.head.weight, gain=gain)
        self.layout = StateLayout(
            {
                f"{layer}.{name}": shape
                for layer, block in enumerate(blocks)
                for name, shape in block.state_shapes().items()
            }
        )
        self._step: CoreStep | None = build_step(self, blocks, self.ln_out, self.layout)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> CoreState:
        """Return the state before anything was read: zeros, by default beside the weights."""
        device = self.emb.weight.device if device is None else device
        return CoreState(self.layout, torch.zeros(batch_size, self.layout.size, device=device))

    def forward(
        self, tokens: Tensor, state: CoreState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, CoreState]:
        """Return the logits of the next token after each, `[B, T, vocab]`, and the last state.

        Args:
            tokens: Token ids `[B, T]`, int64.
            state: The state before the first token; None for `initial_state`.
            reset: `[B, T]` bool; true at t clears the row's state before token t is read. None
                for nowhere.

        Raises:
            ValueError: An argument does not fit, or (on the CPU) an id is not in the vocabulary.
        """
        features, state = self.features(tokens, state, reset)
        return self.head(features), state

    def features(
        self, tokens: Tensor, state: CoreState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, CoreState]:
        """Return what the head reads, `[B, T, C]`, and the last state; see `forward`."""
        tokens, state, reset = self._checked(tokens, state, reset)
        x = self._embed(tokens)
        context: tuple[Tensor, ...] = ()
        if self.config.deep_embed != "none":
            context = (tokens, self._opened(x))
        parts, new = self.layout.split(_precise(state.flat, x)), {}
        v_first: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            own = {name: parts[f"{layer}.{name}"] for name in _PARTS}
            if self.checkpointing and torch.is_grad_enabled():
                x, own, v_first = checkpoint(
                    block, x, own, reset, v_first, context, use_reentrant=False
                )
            else:
                x, own, v_first = block(x, own, reset, v_first, context)
            new.update({f"{layer}.{name}": own[name] for name in _PARTS})
        return self.ln_out(x), CoreState(self.layout, self.layout.join(new).float())

    @torch.no_grad()
    def step(self, tokens: Tensor, state: CoreState) -> tuple[Tensor, CoreState]:
        """Return the logits `[B, vocab]` after one token of each row, and the new state.

        It is `forward` for one token, without gradient, in one compiled call a block where
        float32 on the CPU allows it.

        Args:
            tokens: `[B]`, int64.
            state: The state before them.

        Raises:
            ValueError: As `forward`.
        """
        if tokens.ndim != 1:
            raise ValueError(
                f"tokens have shape {list(tokens.shape)}; expected [B], one for each row. Use "
                "forward for sequences."
            )
        features, state = self._step_features(tokens[:, None], state)
        return self.head(features[:, 0]), state

    def _step_features(self, tokens: Tensor, state: CoreState) -> tuple[Tensor, CoreState]:
        """Return `features` for one token a row, from the compiled step where it can serve."""
        if self._step is not None:
            tokens, state, reset = self._checked(tokens, state, None)
            x = self._opened(self._embed(tokens))
            if can_step(x, state.flat):
                stepped = self._step(x, state.flat, reset)
                if stepped is not None:
                    return stepped[0], CoreState(self.layout, stepped[1])
        return self.features(tokens, state)

    def _opened(self, x: Tensor) -> Tensor:
        """Return the embeddings after the layer norm that the first block begins with."""
        opened: Tensor = self.blocks[0].get_submodule("ln0")(x)
        return opened

    def _checked(
        self, tokens: Tensor, state: CoreState | None, reset: Tensor | None
    ) -> tuple[Tensor, CoreState, Tensor]:
        """Return the three arguments of `forward`, checked, None filled in."""
        if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"tokens are {list(tokens.shape)} {tokens.dtype}; expected [B, T] torch.int64 with "
                "at least one of each."
            )
        if state is None:
            state = self.initial_state(tokens.shape[0], tokens.device)
        self._check_state(tokens, state)
        if reset is None:
            reset = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        if reset.shape != tokens.shape or reset.dtype != torch.bool:
            raise ValueError(
                f"reset is {list(reset.shape)} {reset.dtype}; expected [B, T] = "
                f"{list(tokens.shape)} torch.bool."
            )
        return tokens, state, reset

    def _check_state(self, tokens: Tensor, state: CoreState) -> None:
        if not isinstance(state, CoreState):
            raise ValueError(
                f"state is a {type(state).__name__}; expected a CoreState. Start from "
                "model.initial_state(B)."
            )
        if state.layout is not self.layout and state.layout != self.layout:
            raise ValueError(
                f"state has the parts {dict(state.layout.shapes)}; expected those of this model, "
                f"{dict(self.layout.shapes)}. It belongs to a model of other sizes."
            )
        if state.batch_size != tokens.shape[0] or state.flat.device != tokens.device:
            raise ValueError(
                f"state has {state.batch_size} rows on {state.flat.device}; expected "
                f"{tokens.shape[0]} on {tokens.device}, as the tokens. Use state.index and "
                "state.to."
            )

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings; an id out of range is looked for only after it was refused."""
        try:
            x: Tensor = self.emb(tokens)
        except IndexError as error:
            refused = (tokens < 0) | (tokens >= self.config.vocab_size)
            if not refused.any():
                raise
            position = refused.nonzero()[0].tolist()
            raise ValueError(
                f"token id {int(tokens[tuple(position)])} at [row, position] = {position} is not "
                f"in the vocabulary; expected 0 to {self.config.vocab_size - 1}. Encode the text "
                "with the tokenizer of this model."
            ) from error
        return x


def _block(config: LanguageConfig, layer: int) -> Block:
    """Return one block with RWKV-LM's initial values."""
    mix = None
    if config.deep_embed != "none":
        mix = CHANNEL_MIXES[config.deep_embed](
            config.vocab_size, config.width, config.hidden, layer=layer, layers=config.layers
        )
    return Block(
        config.width, config.head_size, config.hidden,
        layer=layer, layers=config.layers, low_rank=config.ranks,
        norm_eps=config.group_norm_eps, double_rate=config.double_rate, official=True,
        layer_norm_eps=config.norm_eps, opens=layer == 0, channel_mix=mix,
    )  # fmt: skip


def _precise(flat: Tensor, x: Tensor) -> Tensor:
    """Return the state in float64 for a model in float64."""
    return flat.double() if x.dtype is torch.float64 else flat
