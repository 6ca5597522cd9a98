"""The memories to compare with: GRU, LSTM, a window of past inputs, and none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doxastic.memory.base import Memory, check_inputs
from doxastic.memory.segments import run_segment, run_whole
from doxastic.memory.state import StateLayout


class _GatedMemory(Memory):
    """What GRU and LSTM share: the state's layout and the choice of the way to run."""

    rnn: nn.GRU | nn.LSTM

    def __init__(
        self, rnn: type[nn.GRU] | type[nn.LSTM], input_size: int, hidden_size: int, layers: int
    ) -> None:
        super().__init__()
        _check_positive(input_size=input_size, hidden_size=hidden_size, layers=layers)
        names = ("h", "c") if rnn is nn.LSTM else ("h",)
        self.layout = StateLayout({name: (layers, hidden_size) for name in names})
        self.input_size = input_size
        self.feature_size = hidden_size
        self.state_size = self.layout.size
        self.rnn = rnn(input_size, hidden_size, layers)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the top layer's outputs `[B, T, F]` and the state; see `Memory.forward`."""
        check_inputs(self, x, state, reset)
        past = state.masked_fill(reset[:, :1], 0.0).to(x.dtype)
        if x.shape[1] == 1:
            features, new = self._step(x[:, 0], past)
            return features, new.to(state.dtype)
        parts = tuple(
            part.transpose(0, 1).contiguous() for part in self.layout.split(past).values()
        )
        run = run_segment if bool(reset[:, 1:].any()) else run_whole
        features, parts = run(self.rnn, x, parts, reset)
        names = self.layout.shapes
        new = self.layout.join(
            {name: part.transpose(0, 1) for name, part in zip(names, parts, strict=True)}
        )
        return features, new.to(state.dtype)

    def _step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `[B, 1, F]` and the state after one step of torch's cells."""
        layers = self.rnn.num_layers
        past = torch.split(state, self.feature_size, 1)  # h of every layer, then c of every layer
        h, c = [], []
        for layer, weights in enumerate(self.rnn.all_weights):
            if isinstance(self.rnn, nn.LSTM):
                x, cell = torch.lstm_cell(x, (past[layer], past[layers + layer]), *weights)
                c.append(cell)
            else:
                x = torch.gru_cell(x, past[layer], *weights)
            h.append(x)
        return x[:, None], torch.cat(h + c, dim=1)


class GRUMemory(_GatedMemory):
    """Torch's gated recurrent unit; `features` are the outputs of the top layer.

    The state is `h` `[L, F]`, flattened. Segments with resets inside run in one call a layer
    (`doxastic.memory.segments`), with exact gradients.

    Args:
        input_size: Width `C` of the inputs.
        hidden_size: Width `F` of the hidden state and of the features.
        layers: Number of layers `L`.

    Raises:
        ValueError: If an argument is not a positive integer.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1) -> None:
        """Initialise the weights as torch does."""
        super().__init__(nn.GRU, input_size, hidden_size, layers)


class LSTMMemory(_GatedMemory):
    """Torch's long short-term memory; `features` are the outputs of the top layer.

    The state is `h` `[L, F]`, then the cell `c` `[L, F]`, flattened. Segments with resets inside
    run in one call a layer (`doxastic.memory.segments`), with exact gradients.

    Args:
        input_size: Width `C` of the inputs.
        hidden_size: Width `F` of the hidden state and of the features.
        layers: Number of layers `L`.

    Raises:
        ValueError: If an argument is not a positive integer.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1) -> None:
        """Initialise the weights as torch does."""
        super().__init__(nn.LSTM, input_size, hidden_size, layers)


class WindowMemory(Memory):
    """An MLP over the last `window` inputs of the running episode.

    Each input comes with a channel that is 1 where the episode reaches back so far and 0, beside
    an input of zeros, before its start. The state holds the last `window - 1` inputs
    (`[window - 1, C]`, oldest first) and these channels (`[window - 1]`).

    Args:
        input_size: Width `C` of the inputs.
        hidden_size: Width `F` of the two hidden layers and of the features.
        window: Number of inputs seen at once, the current one among them.

    Raises:
        ValueError: If a size is not a positive integer or `window` is less than 2.
    """

    def __init__(self, input_size: int, hidden_size: int, window: int = 16) -> None:
        """Lay out the state and initialise the MLP as torch does."""
        super().__init__()
        _check_positive(input_size=input_size, hidden_size=hidden_size, window=window)
        if window < 2:
            raise ValueError("window is 1; expected >= 2. Use NoMemory to see one input only.")
        self.layout = StateLayout({"input": (window - 1, input_size), "valid": (window - 1,)})
        self.window = window
        self.input_size = input_size
        self.feature_size = hidden_size
        self.state_size = self.layout.size
        self.mlp = _mlp(window * (input_size + 1), hidden_size)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the MLP's outputs `[B, T, F]` and the state; see `Memory.forward`."""
        check_inputs(self, x, state, reset)
        past = self.layout.split(state)
        inputs = torch.cat([past["input"].to(x.dtype), x], 1)  # [B, window - 1 + T, C]
        # Number the episodes from 0, the carried one; -1 marks slots that no episode fills.
        episode = reset.long().cumsum(1)
        unfilled = -(past["valid"] < 0.5).long()
        episodes = torch.cat([unfilled, episode], 1)
        valid = episodes.unfold(1, self.window, 1) == episode[:, :, None]  # [B, T, window]
        windows = inputs.unfold(1, self.window, 1).transpose(2, 3)  # [B, T, window, C]
        windows = windows.masked_fill(~valid[..., None], 0.0)
        features = self.mlp(torch.cat([windows.flatten(2), valid.to(x.dtype)], 2))
        last = {"input": windows[:, -1, 1:], "valid": valid[:, -1, 1:]}
        return features, self.layout.join(last).to(state.dtype)


class NoMemory(Memory):
    """An MLP of the current input: what can be reached without remembering.

    Args:
        input_size: Width `C` of the inputs.
        hidden_size: Width `F` of the two hidden layers and of the features.

    Raises:
        ValueError: If an argument is not a positive integer.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        """Initialise the MLP as torch does."""
        super().__init__()
        _check_positive(input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.feature_size = hidden_size
        self.state_size = 0
        self.mlp = _mlp(input_size, hidden_size)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the MLP's outputs `[B, T, F]` and the empty state; see `Memory.forward`."""
        check_inputs(self, x, state, reset)
        features: Tensor = self.mlp(x)
        return features, state


def _mlp(input_size: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(input_size, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.ReLU(),
    )


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} is {size!r}; expected an integer >= 1.")
