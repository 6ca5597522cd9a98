"""The model of an experiment, before training and back from a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from doxastic.checkpoints import Checkpoint, CheckpointError
from doxastic.language.model import LanguageModel
from doxastic.language.objective import StartState
from doxastic.language.tokenizers import Tokenizer, load_tokenizer
from doxastic.lm.experiment import Experiment, ModelConfig, from_dict
from doxastic.lm.loading import refuse_learnt, run_of, tokenizer_spec
from doxastic.lm.methods import Adaptation, build_method
from doxastic.runs import RunFolder


class Adapted(NamedTuple):
    """A model that is ready to learn."""

    model: LanguageModel
    tokenizer: Tokenizer
    method: Adaptation
    start_state: StartState | None
    base: str | None
    """Identity of the model underneath, where a checkpoint holds nothing of it; else None."""


def build(experiment: Experiment) -> Adapted:
    """Return the model of an experiment as it is before training, the same for the same seed.

    Raises:
        ConfigError: If the experiment cannot be used.
        ValueError, OSError: If the base or the tokenizer cannot be read.
    """
    method = build_method(experiment.adaptation)
    base, spec = experiment.adaptation.base, experiment.data.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.seed)
        if base:
            model, usual = _given_model(Path(base).expanduser())
            tokenizer = load_tokenizer(spec or usual())
        else:
            tokenizer = load_tokenizer(spec or "bytes")
            model = LanguageModel(experiment.model.build(_vocabulary(tokenizer)))
        start_state = method.prepare(model)
    return Adapted(model, tokenizer, method, start_state, _identity(experiment, model))


def _identity(experiment: Experiment, model: LanguageModel) -> str | None:
    if experiment.adaptation.method == "full":
        return None
    # Imported here: a new model needs nothing of fine-tuning.
    from doxastic.language.adaptation.files import base_identity

    return base_identity(model)


def _given_model(path: Path) -> tuple[LanguageModel, Callable[[], str]]:
    """Return a model that stands on the disk, and what names the tokenizer it was made with."""
    # Imported here: a new model needs no reader of files.
    from doxastic.language.formats import ModelFileError, load_model

    run = run_of(path)
    try:
        # Whatever it was stored in: in half precision the small steps of training would vanish.
        model = load_model(path / "model" if run == path else path, dtype=torch.float32)
    except ModelFileError:
        refuse_learnt(path)
        raise
    return model, lambda: tokenizer_spec(path, run, model.config.vocab_size)


def load(run: str | Path, which: str = "best") -> Adapted:
    """Return the model of a run with the weights of a checkpoint.

    Args:
        run: A run folder.
        which: `best`, `last` or the name of a checkpoint, `step-<n>`.

    Raises:
        RunError: If there is no run.
        CheckpointError: If the checkpoint is missing, damaged or of another run.
    """
    folder = RunFolder(run)
    experiment = from_dict(folder.config)
    adapted = build(experiment)
    whole = nn.ModuleDict({"model": adapted.model})
    if isinstance(adapted.start_state, nn.Module):
        whole["start_state"] = adapted.start_state
    own = {name.removeprefix("model."): x for name, x in whole.state_dict().items()}
    checkpoint = folder.load(which)
    check_base(adapted, checkpoint, experiment, folder.path)
    saved = checkpoint.weights
    for name, tensor in own.items():
        if adapted.method.saves(name):
            if name not in saved or saved[name].shape != tensor.shape:
                raise unfit(folder.path, f"it has no {name} of shape {list(tensor.shape)}")
            tensor.copy_(saved[name])
    return adapted


def check_base(adapted: Adapted, checkpoint: Checkpoint, experiment: Experiment, run: Path) -> None:
    """Check that what was learnt beside a model comes back to the same one.

    Raises:
        CheckpointError: The weights of the base are others than in training.
    """
    # Checkpoints of earlier versions do not say it.
    before = checkpoint.data.get("base")
    if before is not None and before != adapted.base:
        raise CheckpointError(
            f"{run} was trained on other weights than {experiment.adaptation.base} has now, and "
            "what it learnt means nothing to these; restore that model, or train a new run"
        )


def _vocabulary(tokenizer: Tokenizer) -> int:
    """Return the size of a new model's vocabulary; large ones are rounded up as in RWKV's."""
    size = tokenizer.vocab_size
    return size if size < 1024 else -(-size // 64) * 64


def resolved(experiment: Experiment, adapted: Adapted) -> Experiment:
    """Return the experiment with what its model and tokenizer are, nothing left open."""
    config = adapted.model.config
    ranks = config.ranks
    model = ModelConfig(
        vocab_size=config.vocab_size,
        width=config.width,
        layers=config.layers,
        head_size=config.head_size,
        hidden_size=config.hidden,
        low_ranks=(ranks.decay, ranks.rate, ranks.value, ranks.gate),
        double_rate=config.double_rate,
        deep_embed=config.deep_embed,
    )
    data = replace(experiment.data, tokenizer=adapted.tokenizer.spec)
    adaptation = experiment.adaptation
    if adaptation.base:
        # The run may be gone on with from another folder, and needs the base then.
        base = str(Path(adaptation.base).expanduser().absolute())
        adaptation = replace(adaptation, base=base)
    return replace(experiment, model=model, data=data, adaptation=adaptation)


def unfit(run: Path, reason: str) -> CheckpointError:
    """Return the error for a checkpoint that is another experiment's."""
    return CheckpointError(
        f"the checkpoint does not fit {run / 'config.yaml'}: {' '.join(reason.split())[:300]}. "
        "Restore the config.yaml the run was trained with."
    )
