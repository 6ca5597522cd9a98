"""What learns when a model is trained: the seam between the trainer and the ways of fine-tuning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from doxastic.configuration import ConfigError, nearest, to_dict
from doxastic.lm.experiment import AdaptationConfig
from doxastic.lm.loading import ADAPTER, STATE

if TYPE_CHECKING:
    from doxastic.language.adaptation import InitialState
    from doxastic.language.model import LanguageModel
    from doxastic.language.objective import StartState


class Adaptation(Protocol):
    """A way of training a model: what of it learns, and what is kept of that."""

    def prepare(self, model: LanguageModel) -> StartState | None:
        """Set what learns, adding to the model what is to be added.

        Called once for every model that is built, before weights of a checkpoint are loaded.

        Returns:
            What gives the state documents begin with, a module if it learns; None for zeros.
        """

    def saves(self, name: str) -> bool:
        """Return whether a checkpoint holds the tensor of that name; the base gives the others."""

    def export(self, model: LanguageModel, start_state: StartState | None, folder: Path) -> str:
        """Write what was learnt into the run folder and say in a line what it is and where.

        Args:
            model: A prepared model with the weights of the best checkpoint.
            start_state: What `prepare` returned for it, likewise.
            folder: The run folder.
        """


class ParameterTuning:
    """The model's own parameters learn, all of them or those that patterns choose."""

    def __init__(self, config: AdaptationConfig) -> None:
        self._trainable, self._frozen = config.trainable, config.frozen

    def prepare(self, model: LanguageModel) -> None:
        """Freeze what the patterns leave out."""
        from doxastic.language.adaptation import set_trainable

        with _located():
            set_trainable(model, self._trainable, self._frozen)

    def saves(self, name: str) -> bool:
        """Return True: a checkpoint holds the whole model."""
        return True

    def export(self, model: LanguageModel, start_state: StartState | None, folder: Path) -> str:
        """Write the model, with its configuration, to `model/`."""
        from doxastic.language.formats import save_model

        save_model(model, folder / "model")
        return f"the model: {folder / 'model'}"


class LoRATuning:
    """Low-rank updates of the model's projections learn."""

    def __init__(self, config: AdaptationConfig) -> None:
        self._config = config.lora

    def prepare(self, model: LanguageModel) -> None:
        """Attach the updates."""
        from doxastic.language.adaptation import apply_lora

        with _located():
            apply_lora(model, self._config)

    def saves(self, name: str) -> bool:
        """Return whether the tensor is of an update."""
        return name.endswith((".lora_a", ".lora_b"))

    def export(self, model: LanguageModel, start_state: StartState | None, folder: Path) -> str:
        """Write the updates to `adapter/`."""
        return _export_adapter(model, folder)


class StateOffsetTuning:
    """A matrix that is added to the state of every head where it is read learns."""

    def __init__(self, config: AdaptationConfig) -> None:
        """Take nothing: it has no options."""

    def prepare(self, model: LanguageModel) -> None:
        """Attach the offsets."""
        from doxastic.language.adaptation import add_state_offset

        add_state_offset(model)

    def saves(self, name: str) -> bool:
        """Return whether the tensor is an offset."""
        return name.endswith(".state_offset")

    def export(self, model: LanguageModel, start_state: StartState | None, folder: Path) -> str:
        """Write the offsets to `adapter/`."""
        return _export_adapter(model, folder)


class StateTuning:
    """The state that documents begin with learns, and the model stays as it is."""

    def __init__(self, config: AdaptationConfig) -> None:
        self._shifts = config.state_shifts

    def prepare(self, model: LanguageModel) -> InitialState:
        """Freeze the model and return the state."""
        from doxastic.language.adaptation import InitialState

        model.requires_grad_(False)
        return InitialState(model, shifts=self._shifts)

    def saves(self, name: str) -> bool:
        """Return whether the tensor is of the state."""
        return name.startswith("start_state.")

    def export(self, model: LanguageModel, start_state: StartState | None, folder: Path) -> str:
        """Write the state to `state.safetensors`, from where generation can start."""
        from doxastic.language.adaptation import InitialState

        assert isinstance(start_state, InitialState)  # What `prepare` returned.
        path = folder / STATE
        start_state.save(path, model)
        return f"the state: {path}; use it with --state"


METHODS: dict[str, Callable[[AdaptationConfig], Adaptation]] = {
    "full": ParameterTuning,
    "lora": LoRATuning,
    "state": StateTuning,
    "state-offset": StateOffsetTuning,
}
"""The ways of training, by the name in `AdaptationConfig.method`."""

# What else is in an `AdaptationConfig` -> the method that reads it.
_READ_BY = {"trainable": "full", "frozen": "full", "lora": "lora", "state_shifts": "state"}


def build_method(config: AdaptationConfig) -> Adaptation:
    """Return the way of training of that name.

    Raises:
        ConfigError: There is none, it needs a model, or an option is set that it does not read.
    """
    if config.method not in METHODS:
        match = nearest(config.method, METHODS)
        hint = f"did you mean {match}?" if match else f"expected one of {', '.join(METHODS)}"
        raise ConfigError(f"adaptation.method is {config.method!r}; {hint}")
    if config.method != "full" and not config.base:
        raise ConfigError(
            f"adaptation.method is {config.method!r}, which leaves the model as it is, and "
            "adaptation.base names none; give one that was trained, with --model"
        )
    _refuse_unread(config)
    return METHODS[config.method](config)


def _refuse_unread(config: AdaptationConfig) -> None:
    """Raise `ConfigError` for an option of another method that is not at its default."""
    given, usual = to_dict(config), to_dict(AdaptationConfig())
    for section, method in _READ_BY.items():
        if method == config.method or given[section] == usual[section]:
            continue
        key, value = f"adaptation.{section}", given[section]
        if isinstance(value, dict):
            odd = next(name for name in value if value[name] != usual[section][name])
            key, value = f"{key}.{odd}", value[odd]
        raise ConfigError(
            f"{key} is {value!r}, which only the method {method} reads, and adaptation.method is "
            f"{config.method!r}; leave it out, or choose --method {method}"
        )


@contextlib.contextmanager
def _located() -> Iterator[None]:
    """Say where in the configuration a pattern is that matches nothing."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"adaptation: {error}") from error


def _export_adapter(model: LanguageModel, folder: Path) -> str:
    from doxastic.language.adaptation import save_adapter

    path = folder / ADAPTER
    save_adapter(model, path)
    return f"the adapter: {path}; use it with --adapter"
