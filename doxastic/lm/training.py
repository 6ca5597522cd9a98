"""Training a language model from an experiment to a run folder, and going on with one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from doxastic.configuration import ConfigError, dump_yaml, to_dict
from doxastic.devices import threads, torch_device
from doxastic.language.distributed import Ranks, process_group
from doxastic.language.token_store import check_vocabulary
from doxastic.language.trainer import Trainer
from doxastic.lm.corpus import build_source, open_corpus
from doxastic.lm.experiment import Experiment, from_dict, load_preset, override
from doxastic.lm.loop import Loop
from doxastic.lm.models import Adapted, build, load, resolved, unfit
from doxastic.lm.samples import build_sampler
from doxastic.progress import Display, make_reporter
from doxastic.runs import RunFolder, run_and_checkpoint

# What a resumed run may change: the rest would make the saved weights or positions unfit.
_CHANGEABLE = ("device", "threads", "checkpoint_updates", "training", "samples")


def train(
    experiment: Experiment | str | Path | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Path:
    """Train a language model and return the run folder.

    Under `torchrun` every process calls it, and all train the one model together.

    ```python
    run = train("tiny", data={"path": "shakespeare.txt"}, training={"updates": 500})
    ```

    Args:
        experiment: An experiment, the name of a preset or the path of a YAML file; by default
            the preset `tiny`, or with `resume` the run's own experiment.
        run_dir: A new or empty folder for the run; by default `runs/<name>`.
        resume: A run folder to continue from its last checkpoint, on the CPU bit for bit with as
            many threads and processes; or one of its folders `checkpoints/step-<n>`.
        progress: Whether to show progress and results.
        **overrides: Fields of `Experiment` to replace; sections as dictionaries.

    Raises:
        ConfigError: If the experiment cannot be used.
        RunError: If the run folder cannot be used or written.
        CheckpointError: If the checkpoint to continue from is damaged or of another run.
        TrainingStopped: If training diverged.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when the run is saved.
    """
    if resume is not None:
        if run_dir is not None:
            raise ConfigError("run_dir and resume are both given; a resumed run keeps its folder")
        return _resume(Path(resume), experiment, overrides, progress)
    wanted = override(_as_experiment(experiment or "tiny"), overrides)
    with _processes(wanted) as (device, ranks), contextlib.ExitStack() as stack:
        adapted = build(wanted)
        wanted = resolved(wanted, adapted)
        run, path = _create(wanted, run_dir, ranks, stack)
        job = _Job(wanted, adapted, run, path, device, ranks)
        try:
            loop = _prepare(job, progress)
        except BaseException:
            # Nothing was trained: a folder left behind would only be in the way of the next try.
            if run is not None:
                shutil.rmtree(path, ignore_errors=True)
            raise
        _finish(job, loop, progress)
    return path


class _Job(NamedTuple):
    """What a run in this process has."""

    experiment: Experiment
    adapted: Adapted
    run: RunFolder | None
    """In the first process alone."""
    path: Path
    device: torch.device
    ranks: Ranks


def _resume(
    path: Path,
    experiment: Experiment | str | Path | None,
    overrides: Mapping[str, Any],
    progress: bool,
) -> Path:
    """Continue the run at `path` and return its folder."""
    run_path, which = run_and_checkpoint(path)
    folder = RunFolder(run_path)
    saved = from_dict(folder.config)
    wanted = override(_as_experiment(experiment or saved), overrides)
    _check_changes(saved, wanted, folder)
    with _processes(wanted) as (device, ranks), contextlib.ExitStack() as stack:
        run = stack.enter_context(folder) if ranks.is_main else None
        name = ranks.from_main(lambda: _take(folder, which, wanted, saved))
        adapted = build(wanted)
        job = _Job(wanted, adapted, run, run_path, device, ranks)
        loop = _prepare(job, progress, name)
        _finish(job, loop, progress)
    return run_path


def _take(folder: RunFolder, which: str, wanted: Experiment, saved: Experiment) -> str | None:
    """Lock the run, drop what came after the checkpoint, and return the checkpoint's name.

    A run that was killed while its text was read has none, and begins.
    """
    folder.lock()
    begins = which == "last" and not folder.has_checkpoint
    step = 0 if begins else folder.load(which).step
    folder.rewind(step)
    if wanted != saved:
        folder.write("config.yaml", dump_yaml(to_dict(wanted)).encode())
    return None if begins else f"step-{step}"


def _create(
    experiment: Experiment, run_dir: str | Path | None, ranks: Ranks, stack: contextlib.ExitStack
) -> tuple[RunFolder | None, Path]:
    """Return the new run in the first process, and its folder in all."""
    created: list[RunFolder] = []

    def create() -> Path:
        run = RunFolder.create(to_dict(experiment), name=experiment.name, path=run_dir)
        created.append(stack.enter_context(run))
        return run.path

    path = ranks.from_main(create)
    return (created[0] if created else None), path


def _prepare(job: _Job, progress: bool, checkpoint: str | None = None) -> Loop:
    """Return the loop, at the beginning or at a checkpoint."""
    experiment, trainer = job.experiment, _build_trainer(job)
    restored = None
    if checkpoint is not None:
        restored = RunFolder(job.path).load(checkpoint, with_trainer=True)
    start = 0 if restored is None else restored.update
    shown = progress and job.run is not None
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
    )
    if restored is not None:
        try:
            loop.restore(restored)
        except (KeyError, RuntimeError, ValueError) as error:
            raise unfit(job.path, str(error)) from error
    return loop


def _build_trainer(job: _Job) -> Trainer:
    experiment, ranks = job.experiment, job.ranks
    corpus = open_corpus(experiment.data, job.adapted.tokenizer, job.path, ranks)
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


def _sampler(job: _Job) -> Callable[[int], None] | None:
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


def _finish(job: _Job, loop: Loop, progress: bool) -> None:
    """Train, and write what the best checkpoint holds in the form in which it is used."""
    loop.train()
    if job.run is None:
        return
    adapted = load(job.path)
    line = adapted.method.export(adapted.model, adapted.start_state, job.path)
    if progress:
        lowest = "" if loop.lowest is None else f"; loss on held-out text {loop.lowest:.4f}"
        print(f"wrote {line}{lowest}")


def _as_experiment(experiment: Experiment | str | Path) -> Experiment:
    return experiment if isinstance(experiment, Experiment) else load_preset(experiment)


def _check_changes(saved: Experiment, wanted: Experiment, run: RunFolder) -> None:
    """Raise `ConfigError` if a resumed run is asked to be another experiment."""
    before, after = to_dict(saved), to_dict(wanted)
    changed = [key for key in before if before[key] != after[key] and key not in _CHANGEABLE]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} differs from {run.path / 'config.yaml'}; a resumed run may "
            f"change only {', '.join(_CHANGEABLE)}. Train a new run for the rest."
        )


@contextlib.contextmanager
def _processes(experiment: Experiment) -> Iterator[tuple[torch.device, Ranks]]:
    """Join the processes of `torchrun`, and bound the threads of this one."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    number = experiment.threads or max(1, (os.cpu_count() or 1) // local)
    with threads(number), process_group(torch_device(experiment.device)) as device:
        yield device, Ranks()
