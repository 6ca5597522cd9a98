"""Training a language model from an experiment to a run folder, and going on with one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from doxastic.configuration import ConfigError, dump_yaml, to_dict
from doxastic.devices import threads, torch_device
from doxastic.language.distributed import Ranks, process_group
from doxastic.lm.experiment import Experiment, from_dict, load_preset, override
from doxastic.lm.job import Job, prepare
from doxastic.lm.loop import Loop
from doxastic.lm.models import build, load, resolved
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
        job = Job(wanted, adapted, run, path, device, ranks)
        try:
            loop = prepare(job, progress)
        except BaseException:
            # Nothing was trained: a folder left behind would only be in the way of the next try.
            if run is not None:
                shutil.rmtree(path, ignore_errors=True)
            raise
        _finish(job, loop, progress)
    return path


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
        step = ranks.from_main(lambda: _take(folder, which))
        adapted = build(wanted)
        job = Job(wanted, adapted, run, run_path, device, ranks)
        loop = prepare(job, progress, None if step is None else f"step-{step}")
        # Only now, when the run can go on, is its folder changed.
        ranks.from_main(lambda: _rewind(folder, step or 0, wanted, saved))
        _finish(job, loop, progress)
    return run_path


def _take(folder: RunFolder, which: str) -> int | None:
    """Lock the run and return the step of the checkpoint.

    A run that was killed while its text was read has none, and begins.
    """
    folder.lock()
    if which == "last" and not folder.has_checkpoint:
        return None
    return folder.load(which).step


def _rewind(folder: RunFolder, step: int, wanted: Experiment, saved: Experiment) -> None:
    """Drop what came after the step, and write down what the run is from there on."""
    folder.rewind(step)
    if wanted != saved:
        folder.write("config.yaml", dump_yaml(to_dict(wanted)).encode())


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


def _finish(job: Job, loop: Loop, progress: bool) -> None:
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
