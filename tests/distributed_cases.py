"""What each of two processes runs in test_distributed.py: trains, and writes what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from doxastic.language.batches import DocumentRows, Streams
from doxastic.language.config import LanguageConfig
from doxastic.language.distributed import Ranks, process_group
from doxastic.language.model import LanguageModel
from doxastic.language.token_store import TokenStore
from doxastic.language.trainer import Trainer, TrainerState
from doxastic.language.training_config import TrainingConfig

UPDATES = 3
# Kind of batches, of parallel training, and other settings.
CASES = {
    "documents-ddp": (DocumentRows, {"parallel": "ddp", "accumulation": 2}),
    "documents-fsdp": (DocumentRows, {"parallel": "fsdp", "checkpoint_blocks": True}),
    "streams-ddp": (Streams, {"parallel": "ddp", "backpropagate_windows": 2, "accumulation": 2}),
    "streams-fsdp": (Streams, {"parallel": "fsdp", "backpropagate_windows": 2}),
    "tables-fsdp": (DocumentRows, {"parallel": "fsdp", "accumulation": 2}),
}
# Where blocks read what stands outside of them.
TABLES = {"tables-fsdp": "matrix"}


def build(case: str) -> Trainer:
    """Return the trainer of a case, for as many processes as there are."""
    random = np.random.default_rng(0)
    documents = [random.integers(0, 64, random.integers(4, 40)) for _ in range(24)]
    # Completions of another length in every row: processes count unequally many targets.
    masks = [np.arange(len(document)) > random.integers(0, 12) for document in documents]
    store = TokenStore.from_documents(documents, vocab_size=65, end_of_document=64, masks=masks)
    torch.manual_seed(0)
    config = LanguageConfig(
        vocab_size=65, width=32, layers=2, head_size=16, deep_embed=TABLES.get(case, "none")
    )
    model = LanguageModel(config).double()
    ranks, (source, settings) = Ranks(), CASES[case]
    return Trainer(
        model,
        source(store, 6, 16, rank=ranks.rank, world=ranks.world),
        TrainingConfig(updates=50, warmup_updates=0, evaluation_batches=2, **settings),
        held_out=source(store, 6, 16, seed=1, rank=ranks.rank, world=ranks.world),
    )


def train(trainer: Trainer, updates: int) -> list[dict[str, float]]:
    """Return the metrics of some updates, the last with the loss on held-out text."""
    measured = [trainer.update() for _ in range(updates)]
    measured[-1]["held_out_loss"] = trainer.evaluate()
    return measured


def flatten(state: TrainerState) -> dict[str, torch.Tensor]:
    """Return the tensors of a state under one roof, copied."""
    groups = {"weights": state.weights, "tensors": state.tensors}
    return {f"{g}:{name}": x.clone() for g, group in groups.items() for name, x in group.items()}


def unflatten(tensors: dict[str, torch.Tensor], data: dict) -> TrainerState:
    """Return the state that `flatten` took apart."""
    weights, others = (
        {name.removeprefix(group): x for name, x in tensors.items() if name.startswith(group)}
        for group in ("weights:", "tensors:")
    )
    return TrainerState(weights, others, data)


def main(folder: Path) -> None:
    """Train every case, go on from what one process saved, and write the tensors and numbers."""
    with process_group(torch.device("cpu")):
        ranks, results = Ranks(), {}
        for case in CASES:
            trainer = build(case)
            measured = train(trainer, UPDATES)
            state = trainer.state_dict()
            resumed = build(case)
            saved = torch.load(folder / f"{case}-one.pt", weights_only=True)
            resumed.load_state_dict(unflatten(load_file(folder / f"{case}-one.safetensors"), saved))
            measured += train(resumed, 1)
            after = resumed.state_dict()
            if ranks.is_main:
                save_file(flatten(state), folder / f"{case}-two.safetensors")
                save_file(flatten(after), folder / f"{case}-two-resumed.safetensors")
                results[case] = (measured, state.data)
        if ranks.is_main:
            torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
