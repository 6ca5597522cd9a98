"""What adapting a small model to another kind of text gains, by method and number of examples.

A byte model learns tinyshakespeare; then every method adapts it to paragraphs of WikiText-2, cut to
256 bytes: full fine-tuning, LoRA, state tuning and state-offset tuning. Learning rates are chosen
on paragraphs held out of the training text, by the loss with 64 examples; the same paragraphs say
at which update a training stops. What is reported is the loss on another file. One process, one
thread; a seed draws the examples and their order.

Where those files are not beside the repository, the base learns Python's own modules and the new
text is the documentation in `pydoc_data`.

    python benchmarks/adaptation.py
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from harness import ROOT, Options, Report

from doxastic.language.adaptation import InitialState, LoRAConfig, add_state_offset, apply_lora
from doxastic.language.batches import DocumentRows, RandomWindows
from doxastic.language.config import LanguageConfig, LowRanks
from doxastic.language.evaluation import score_documents
from doxastic.language.model import LanguageModel
from doxastic.language.token_store import TokenStore
from doxastic.language.trainer import Trainer
from doxastic.language.training_config import TrainingConfig
from doxastic.memory.state import CoreState

FULL, LORA, STATE, OFFSET = "full", "LoRA", "state", "state offset"
RANK = 8
# Learning rates to choose from, about a factor of three apart.
RATES = {
    FULL: (1e-3, 3e-3, 1e-2),
    LORA: (3e-3, 1e-2, 3e-2),
    STATE: (0.1, 0.3, 1.0, 3.0),
    OFFSET: (0.03, 0.1, 0.3, 1.0),
}
# Number of examples -> updates at most, of 8 examples each.
UPDATES = {16: 40, 64: 60, 256: 100, 1024: 160}
LENGTH, ROWS, LONG = 256, 8, 1024
END = 256


@dataclass(frozen=True, kw_only=True)
class AdaptationOptions(Options):
    """Held-out loss on a new kind of text, by method and number of examples."""

    data: Path = ROOT.parent / "shared" / "data"
    """Folder of tinyshakespeare.txt, wikitext2-valid.txt and wikitext2-test.txt."""

    seeds: int = 3
    """Draws of the examples."""

    base_updates: int = 1000
    """Updates of the base model."""


class Texts(NamedTuple):
    """What is read, in bytes."""

    base: bytes
    train: list[bytes]
    validation: list[bytes]
    test: list[bytes]
    source: str


class Adapted(NamedTuple):
    """A model after adaptation."""

    model: LanguageModel
    state: CoreState | None
    validation: float
    seconds: float
    tokens: int


def main(options: AdaptationOptions) -> None:
    """Measure, print and write `adaptation.json`."""
    torch.set_num_threads(1)
    report = Report("adaptation", options)
    texts = read_texts(options.data)
    report.data["texts"] = texts.source
    base = train_base(texts, 2 if options.quick else options.base_updates)
    before = bits(base, None, texts.test)
    report.data["base"] = {
        "parameters": sum(p.numel() for p in base.parameters()),
        "new text, bits per byte": before,
        "own text, bits per byte": own_loss(base, texts),
    }
    report.console.print(f"base: {report.data['base']}")
    rates = {method: choose_rate(report, base, texts, method, options.quick) for method in RATES}
    compare(report, base, texts, rates, options)
    report.save()


def compare(
    report: Report, base: LanguageModel, texts: Texts, rates: dict[str, float],
    options: AdaptationOptions,
) -> None:  # fmt: skip
    """Adapt with every method and number of examples, and report the held-out losses."""
    sizes = list(UPDATES)[:1] if options.quick else list(UPDATES)
    before, far_before = bits(base, None, texts.test), far(base, None, texts)
    rows, last = [], []
    for method, rate in rates.items():
        cells = []
        for size in sizes:
            losses = []
            for seed in range(1 if options.quick else options.seeds):
                done = adapt(base, texts, method, rate, size, seed, options.quick)
                losses.append(bits(done.model, done.state, texts.test))
                entry = {"method": method, "examples": size, "seed": seed, "rate": rate}
                found = {
                    "bits_per_byte": losses[-1], "beyond": far(done.model, done.state, texts),
                    "validation": done.validation, "tokens_per_cpu_second":
                    done.tokens / done.seconds, "learnt": learnt(done, method),
                }  # fmt: skip
                if method == FULL:
                    found["own_text"] = own_loss(done.model, texts)
                report.add("adaptation", {**entry, **found})
            cells.append(f"{statistics.mean(losses):.3f}")
            if method != OFFSET:
                worst = max(losses) - before
                report.target(f"{method}, {size} examples - base, worst seed", worst, most=0.0)
        done_far = [e["beyond"] for e in report.data["results"]["adaptation"][-len(losses) :]]
        rows.append((method, f"{rate:g}", f"{learnt(done, method):,}", *cells))
        last.append((method, f"{statistics.mean(done_far):.3f}"))
        report.write()
    report.table(
        f"bits per byte of new text, mean of {len(losses)} seeds; base {before:.3f}",
        ("method", "rate", "learnt numbers", *(f"{size} examples" for size in sizes)), rows,
    )  # fmt: skip
    report.table(
        f"bytes {LENGTH} to {LONG} after {sizes[-1]} examples; base {far_before:.3f}",
        ("method", "bits per byte"), last,
    )  # fmt: skip


# The texts


def read_texts(folder: Path) -> Texts:
    """Return the texts, of Python itself where the files are missing."""
    names = ("tinyshakespeare.txt", "wikitext2-valid.txt", "wikitext2-test.txt")
    if all((folder / name).is_file() for name in names):
        own, new, other = ((folder / name).read_bytes() for name in names)
        source = ", ".join(names)
    else:
        from pydoc_data.topics import topics

        modules = sorted(Path(os.__file__).parent.glob("*.py"))
        own = b"\n".join(module.read_bytes() for module in modules)
        words = [" ".join(topics[name].split()).encode() for name in sorted(topics)]
        new, other = (
            b"\n".join(piece for text in part for piece in pieces(text))
            for part in (words[::2], words[1::2])
        )
        source = f"the modules and pydoc_data.topics of Python {sys.version.split()[0]}"
    paragraphs, test = long_lines(new), long_lines(other)
    cut = len(paragraphs) * 9 // 10
    return Texts(own, paragraphs[:cut], paragraphs[cut:][:64], test[:256], source)


def pieces(text: bytes) -> list[bytes]:
    """Return a long text in pieces of a paragraph's length."""
    return [text[begin : begin + 2 * LONG] for begin in range(0, len(text), 2 * LONG)]


def long_lines(text: bytes) -> list[bytes]:
    """Return the lines that are longer than an example."""
    return [line.strip() for line in text.split(b"\n") if len(line) > LENGTH + 32]


def documents(texts: Sequence[bytes], length: int) -> list[np.ndarray]:
    """Return token ids, each opened by the end-of-document id."""
    return [np.array([END, *text[:length]]) for text in texts]


def store_of(texts: Sequence[bytes]) -> TokenStore:
    """Return examples as a corpus."""
    return TokenStore.from_documents(
        [np.frombuffer(text, np.uint8) for text in texts], vocab_size=END + 1, end_of_document=END
    )


# Training


def train_base(texts: Texts, updates: int) -> LanguageModel:
    """Return a model that learnt its own kind of text; a tenth is held out."""
    torch.manual_seed(0)
    ranks = LowRanks(16, 16, 16, 16)
    model = LanguageModel(
        LanguageConfig(vocab_size=END + 1, width=64, layers=3, head_size=32, low_ranks=ranks)
    )
    config = TrainingConfig(
        updates=updates, learning_rate=3e-3, final_learning_rate=3e-4, warmup_updates=50
    )
    source = RandomWindows(store_of([texts.base[: len(texts.base) * 9 // 10]]), 16, 128)
    trainer = Trainer(model, source, config)
    for _ in range(updates):
        trainer.update()
    return model


def choose_rate(
    report: Report, base: LanguageModel, texts: Texts, method: str, quick: bool
) -> float:
    """Return the learning rate with the lowest validation loss with 64 examples."""
    found = {}
    for rate in RATES[method][: 1 if quick else None]:
        done = adapt(base, texts, method, rate, 64, 1000, quick)
        found[rate] = done.validation
        report.add("rates", {"method": method, "rate": rate, "validation": done.validation})
    best = min(found, key=lambda rate: found[rate])
    report.console.print(f"{method}: {best:g} of {found}")
    return best


def adapt(
    base: LanguageModel, texts: Texts, method: str, rate: float, size: int, seed: int, quick: bool
) -> Adapted:
    """Return the base adapted to a draw of examples, where its validation loss is least."""
    torch.manual_seed(seed)
    model, start = copy.deepcopy(base), None
    if method == LORA:
        apply_lora(model, LoRAConfig(rank=RANK, alpha=2.0 * RANK))
    elif method == OFFSET:
        add_state_offset(model)
    elif method == STATE:
        model.requires_grad_(False)
        start = InitialState(model)
    drawn = np.random.default_rng(seed).permutation(len(texts.train))[:size]
    examples = [texts.train[index][:LENGTH] for index in drawn]
    updates = 2 if quick else UPDATES[size]
    config = TrainingConfig(
        updates=updates, learning_rate=rate, final_learning_rate=rate / 10, warmup_updates=5,
        weight_decay=0.0, clip_norm=1.0 if method in (FULL, LORA) else 0.0,
    )  # fmt: skip
    source = DocumentRows(store_of(examples), ROWS, LENGTH + 1, seed)
    trainer = Trainer(model, source, config, start_state=start, seed=seed)
    return descend(trainer, start, lambda state: bits(model, state, texts.validation), updates)


def descend(
    trainer: Trainer, start: InitialState | None, judge: Callable[[CoreState | None], float],
    updates: int,
) -> Adapted:  # fmt: skip
    """Train, and go back to where the validation loss was least."""
    best, kept, seconds = math.inf, {}, 0.0
    for update in range(1, updates + 1):
        begin = time.process_time()
        trainer.update()
        seconds += time.process_time() - begin
        if update % 20 == 0 or update == updates:
            loss = judge(state_of(start))
            if loss < best:
                weights = trainer.state_dict().weights
                best, kept = loss, {name: tensor.clone() for name, tensor in weights.items()}
    named = dict(trainer.model.state_dict())
    if start is not None:
        named |= {f"start_state.{name}": tensor for name, tensor in start.state_dict().items()}
    for name, tensor in named.items():
        tensor.copy_(kept[name])
    return Adapted(trainer.model, state_of(start), best, seconds, trainer.tokens)


# What is measured


def state_of(start: InitialState | None) -> CoreState | None:
    """Return the tuned state."""
    with torch.no_grad():
        return None if start is None else start(1).clone()


def bits(model: LanguageModel, state: CoreState | None, texts: Sequence[bytes]) -> float:
    """Return the bits per byte of examples, each from its beginning."""
    scores = score_documents(model, documents(texts, LENGTH), state=state, batch_size=32)
    return float(scores.nats.sum() / scores.tokens.sum() / math.log(2))


def far(model: LanguageModel, state: CoreState | None, texts: Texts) -> float:
    """Return the bits per byte farther into a text than any example went."""
    long = [text for text in texts.test if len(text) > LONG][:64]
    masks = [np.arange(LONG + 1) > LENGTH for _ in long]
    scores = score_documents(model, documents(long, LONG), masks, state=state, batch_size=32)
    return float(scores.nats.sum() / scores.tokens.sum() / math.log(2))


def own_loss(model: LanguageModel, texts: Texts) -> float:
    """Return the bits per byte of held-out text of the base's own kind."""
    held_out = texts.base[len(texts.base) * 9 // 10 :]
    return bits(model, None, [held_out[i : i + LENGTH] for i in range(0, 128 * LENGTH, LENGTH)])


def learnt(done: Adapted, method: str) -> int:
    """Return how many numbers a method trains."""
    if method == STATE:
        return sum(
            math.prod(shape) for name, shape in done.model.layout.parts if name.endswith("wkv")
        )
    return sum(p.numel() for p in done.model.parameters() if p.requires_grad)


if __name__ == "__main__":
    main(tyro.cli(AdaptationOptions))
