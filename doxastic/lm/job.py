"""What a run has in one process, and the loop that is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from doxastic.checkpoints import Checkpoint
from doxastic.configuration import ConfigError
from doxastic.language.batches import BatchSource, DocumentRows
from doxastic.language.distributed import Ranks
from doxastic.language.token_store import check_vocabulary
from doxastic.language.trainer import Trainer
from doxastic.lm.corpus import build_source, check_same_text, open_corpus
from doxastic.lm.experiment import Experiment
from doxastic.lm.loop import Loop
from doxastic.lm.models import Adapted, check_base, unfit
from doxastic.lm.samples import build_sampler
from doxastic.progress import Display, make_reporter
from doxastic.runs import RunFolder


class Job(NamedTuple):
    """What a run in this process has."""

    experiment: Experiment
    adapted: Adapted
    run: RunFolder | None
    """In the first process alone."""
    path: Path
    device: torch.device
    ranks: Ranks


def prepare(job: Job, progress: bool, checkpoint: str | None = None) -> Loop:
    """Return the loop, at the beginning or at a checkpoint.

    Args:
        job: What the run has.
        progress: Whether the first process shows how far it is.
        checkpoint: The name of a checkpoint of the run; None for the beginning.

    Raises:
        ConfigError: The experiment cannot be used with its text or its processes.
        CheckpointError: The checkpoint is damaged, or of another experiment, text or base.
    """
    experiment, restored = job.experiment, None
    if checkpoint is not None:
        restored = RunFolder(job.path).load(checkpoint, with_trainer=True)
        check_base(job.adapted, restored, experiment, job.path)
    start = 0 if restored is None else restored.update
    shown = progress and job.run is not None
    trainer = _build_trainer(job, shown, goes_on=restored is not None)
    if shown:
        verb = "training" if restored is None else "continuing"
        size = sum(p.numel() for p in job.adapted.model.parameters())
        print(f"{verb} {size:,} parameters into {job.path}", flush=True)
    training = experiment.training
    batches = training.accumulation * training.backpropagate_windows
    display = Display("update", "loss", "loss", "tokens", trainer.source.tokens_per_batch * batches)
    command = "finetune" if experiment.adaptation.base else "pretrain"
    loop = Loop(
        trainer,
        job.run,
        checkpoint_updates=experiment.checkpoint_updates,
        make_reporter=lambda: make_reporter(training.updates, start, shown=shown, display=display),
        resume=f"doxastic lm {command} --resume {job.path}",
        sample=_sampler(job),
        base=job.adapted.base,
    )
    if restored is not None:
        _restore(job, loop, trainer, restored)
    return loop


def _restore(job: Job, loop: Loop, trainer: Trainer, checkpoint: Checkpoint) -> None:
    identity = checkpoint.data["trainer"]["source"]["store"]
    check_same_text(trainer.source.store, identity, job.experiment.data, job.path)
    try:
        loop.restore(checkpoint)
    except (KeyError, RuntimeError, ValueError) as error:
        raise unfit(job.path, str(error)) from error


def _build_trainer(job: Job, shown: bool, *, goes_on: bool) -> Trainer:
    experiment, ranks = job.experiment, job.ranks
    corpus = open_corpus(experiment.data, job.adapted.tokenizer, job.path, ranks, goes_on=goes_on)
    for store in filter(None, corpus):
        check_vocabulary(store, job.adapted.model.config.vocab_size)
    tunes_start = job.adapted.start_state is not None
    source = build_source(
        experiment.data, corpus.train, ranks, experiment.seed, tunes_start=tunes_start
    )
    held_out = None
    if corpus.held_out is not None:
        held_out = build_source(
            experiment.data, corpus.held_out, ranks, experiment.seed,
            for_evaluation=True, tunes_start=tunes_start,
        )  # fmt: skip
    if shown:
        _tell_cut("data", source)
        _tell_cut("the held-out text", held_out)
    return Trainer(
        job.adapted.model,
        source,
        experiment.training,
        device=job.device,
        start_state=job.adapted.start_state,
        held_out=held_out,
        saves=job.adapted.method.saves,
        seed=experiment.seed,
    )


def _tell_cut(which: str, source: BatchSource | None) -> None:
    """Print how much of the documents is cut off, if anything is."""
    if isinstance(source, DocumentRows) and source.cut_documents:
        print(
            f"{which}: {source.cut_documents:,} of {len(source.store.documents):,} documents are "
            f"longer than data.block = {source.block:,} and lose their end, {source.cut_tokens:,} "
            "tokens in all",
            flush=True,
        )


def _sampler(job: Job) -> Callable[[int], None] | None:
    experiment = job.experiment
    if experiment.samples.updates == 0:
        return None
    if experiment.training.parallel == "fsdp" and job.ranks.world > 1:
        raise ConfigError(
            "samples.updates asks for texts on the way, which no process can write while the model "
            "is split over them; set it to 0, or training.parallel to ddp"
        )
    if job.run is None:
        return None
    adapted = job.adapted
    return build_sampler(
        experiment.samples, adapted.model, adapted.start_state, adapted.tokenizer, job.run
    )
