"""The text of an experiment: token stores on the disk, and batches from them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from doxastic.checkpoints import CheckpointError
from doxastic.configuration import ConfigError
from doxastic.language.batches import (
    BatchSource,
    DocumentRows,
    PackedDocuments,
    RandomWindows,
    Streams,
)
from doxastic.language.distributed import Ranks
from doxastic.language.token_store import TokenStore, build_store
from doxastic.language.tokenizers import Tokenizer
from doxastic.lm.experiment import DataConfig

_SOURCES: dict[str, type[BatchSource]] = {
    "windows": RandomWindows,
    "packed": PackedDocuments,
    "documents": DocumentRows,
    "streams": Streams,
}
# Below so many documents for each row of a batch, rows would read the same ones at the same time.
_DOCUMENTS_PER_ROW = 4
# Added to the seed where batches are for evaluation.
_EVALUATION = 500_000_000


class Corpus(NamedTuple):
    """What is read in training, and what the model is judged by."""

    train: TokenStore
    held_out: TokenStore | None
    """None for no evaluation."""


def open_corpus(
    config: DataConfig, tokenizer: Tokenizer, run: Path, ranks: Ranks, *, goes_on: bool = False
) -> Corpus:
    """Return the stores of an experiment; the first process builds those that are not there.

    Args:
        config: Where the text is.
        tokenizer: What cuts it.
        run: The run folder, where stores go unless `config` names a folder.
        ranks: The processes, which all see that folder.
        goes_on: Whether a store that is there is taken whatever became of the text: a run goes on
            with the tokens it began with.

    Raises:
        ConfigError: If no text is named, or it is too short to hold some of it out.
        ValueError: If the text cannot be used.
        OSError: If a file cannot be read, or the disk refuses.
    """
    if not config.path:
        raise ConfigError("data.path is empty; name a text file, a folder or a .jsonl with --data")
    folder = _folder(config, run)
    store = _store(config.path, folder, config, tokenizer, ranks, goes_on)
    if config.held_out:
        beside = folder.with_name(f"{folder.name}-held-out")
        return Corpus(store, _store(config.held_out, beside, config, tokenizer, ranks, goes_on))
    if config.held_out_fraction == 0.0:
        return Corpus(store, None)
    try:
        return Corpus(*store.split(config.held_out_fraction))
    except ValueError as error:
        raise ConfigError(
            f"data: {error} Name another text for evaluation with --data.held-out, or evaluate "
            "on none with --data.held-out-fraction 0"
        ) from error


def build_source(
    config: DataConfig, store: TokenStore, ranks: Ranks, seed: int, *,
    for_evaluation: bool = False, tunes_start: bool = False,
) -> BatchSource:  # fmt: skip
    """Return the batches of this process.

    Args:
        config: How the text is cut.
        store: The text.
        ranks: The processes.
        seed: Of the order.
        for_evaluation: Whether they are of held-out text.
        tunes_start: Whether the state that rows begin with is trained: no document may begin
            inside a row.

    Raises:
        ConfigError: The text cannot be cut so.
    """
    seed = (seed + _EVALUATION) % 2**31 if for_evaluation else seed
    kind: str = config.batches
    if tunes_start:
        kind = _alone(kind, store, config.block)
    elif kind == "auto":
        is_few = len(store.documents) < _DOCUMENTS_PER_ROW * config.batch_size
        kind = "windows" if is_few else "packed"
    if kind == "windows":
        # Where documents may not begin inside a row, they are read one a row.
        other = "documents" if tunes_start else "packed"
        _check_length(store, config.block, for_evaluation, other)
    source = _SOURCES[kind]
    try:
        return source(store, config.batch_size, config.block, seed, ranks.rank, ranks.world)
    except ValueError as error:
        which = "the held-out text" if for_evaluation else "data"
        raise ConfigError(f"{which}: {error}") from error


def check_same_text(store: TokenStore, identity: str, config: DataConfig, run: Path) -> None:
    """Check that a run which goes on reads what it read before.

    Args:
        store: What is read in training.
        identity: Of the store that the run was trained on so far.
        config: Where the text is.
        run: The run folder.

    Raises:
        CheckpointError: The tokens are others.
    """
    if store.identity == identity:
        return
    text, folder = Path(config.path).expanduser(), _folder(config, run)
    remedy = f"restore the text at {text} as it was, remove {folder}, and resume again"
    if _is_store(text):
        folder, remedy = text, "restore that store, and resume again"
    raise CheckpointError(
        f"{folder} holds other tokens than those {run} was trained on so far; {remedy}"
    )


def _check_length(store: TokenStore, block: int, for_evaluation: bool, other: str) -> None:
    """Raise `ConfigError` if no window of a block and the target of its last token fits."""
    tokens = len(store)
    if tokens > block:
        return
    which, more = "data", "give more text with --data,"
    if for_evaluation:
        which, more = "the held-out text", "name a longer text with --data.held-out, give"
    shorter = f"--data.block {max(tokens - 1, 1)} or less"
    raise ConfigError(
        f"{which} has {tokens:,} tokens, and windows of data.block = {block:,} tokens need "
        f"{block + 1:,}; {more} {shorter}, or --data.batches {other}"
    )


def _alone(kind: str, store: TokenStore, block: int) -> str:
    """Return batches whose rows begin with the tuned state and are never reset in between."""
    is_one = len(store.documents) == 1
    if is_one and (kind == "windows" or (kind == "auto" and len(store) > block)):
        # Nothing begins inside a window of it, and of one row little would be read.
        return "windows"
    if kind not in ("auto", "documents"):
        raise ConfigError(
            f"data.batches is {kind!r}, and the state that documents begin with is tuned: in these "
            "batches documents begin inside a row too, where a reset clears the state to zeros. "
            "Choose documents"
        )
    return "documents"


def _folder(config: DataConfig, run: Path) -> Path:
    return Path(config.store) if config.store else run / "tokens"


def _is_store(path: Path) -> bool:
    return (path / "store.json").is_file()


def _store(
    path: str, folder: Path, config: DataConfig, tokenizer: Tokenizer, ranks: Ranks, goes_on: bool
) -> TokenStore:
    text = Path(path).expanduser()
    if _is_store(text):
        return TokenStore.open(text, tokenizer)

    def build() -> None:
        # A run that begins again after it was killed may do without the text, too.
        if not _is_store(folder) or (text.exists() and not goes_on):
            build_store(text, tokenizer, folder, field=config.field, suffixes=config.suffixes)

    ranks.from_main(build)
    return TokenStore.open(folder, tokenizer)
