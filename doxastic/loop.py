"""The training loop: update, log, save; and what happens when something stops it."""

from __future__ import annotations

import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from doxastic.agents.collector import EnvironmentFailure
from doxastic.agents.optimization import TrainingDiverged
from doxastic.agents.ppo import PPO
from doxastic.checkpoints import Checkpoint
from doxastic.disk import RunError
from doxastic.interruption import Interruption, TrainingInterrupted
from doxastic.progress import Reporter
from doxastic.runs import RunFolder

# Groups of PPO's checkpoint that make the agent; the others serve training only.
AGENT_GROUPS = ("policy/", "observation_normalizer/")


class TrainingStopped(RuntimeError):
    """Training could not go on; what was reached before is in the run folder."""


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """The state after an update, whole and finite, with the quality of the agent then."""

    update: int
    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any]
    seconds: float
    merit: float
    """How good the agent is, minus infinity if that is unknown or it is no candidate."""
    error: float
    """Standard error of that."""


class Loop:
    """Trains until the total number of steps, saving on the way and whatever stops it.

    The state after every update is kept in memory, so that a failure in the next one loses
    nothing: it is what gets saved.

    The best checkpoint is the one with the highest score, the latest of equals. Without a score
    it is the latest one whose mean return over the last 100 training episodes is not below that
    of an earlier one by more than their standard errors: a lucky early hundred does not displace
    a longer training. What is saved out of turn, since something stopped the training, is no
    candidate: a run that was stopped and continued ends with the best checkpoint of one that
    was not.

    Args:
        ppo: The trainer.
        run: The locked run folder.
        checkpoint_updates: Updates between two checkpoints.
        score: Judges the agent as it is; a function of its weights alone.
    """

    def __init__(
        self,
        ppo: PPO,
        run: RunFolder,
        *,
        checkpoint_updates: int,
        score: Callable[[], float] | None = None,
    ) -> None:
        self._ppo = ppo
        self._score = score
        self._run = run
        self._checkpoint_updates = checkpoint_updates
        self._saved_update: int | None = None
        self._record = -math.inf
        self._best_step: int | None = None
        self._seconds = 0.0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            KeyError, RuntimeError, ValueError: If it does not fit the trainer.
        """
        self._ppo.restore(
            {**checkpoint.weights, **checkpoint.trainer}, dict(checkpoint.data["ppo"])
        )
        record, step = checkpoint.data["record"], checkpoint.data.get("best_step")
        # Without the checkpoint that it is the record of, a worse one would stay the best.
        if record is not None and (step is None or self._run.keeps(step)):
            self._record, self._best_step = record, step
        self._seconds = checkpoint.data["seconds"]
        self._saved_update = checkpoint.update

    def train(self, total_steps: int, reporter: Reporter) -> None:
        """Update until `total_steps`, then save; `reporter` shows the progress.

        Raises:
            TrainingStopped: If training diverged or the environment failed.
            TrainingInterrupted: After SIGINT or SIGTERM.
            RunError: If the run folder cannot be written.
        """
        snapshot = self._snapshot(is_candidate=False)
        try:
            with Interruption() as interruption:
                # Before the first update already: a disk that refuses should say so at once.
                self._save(snapshot)
                # What is there now stays: a full collection of all that PyTorch and its friends
                # made on import takes as long as an update.
                gc.collect()
                gc.freeze()
                while self._ppo.steps < total_steps:
                    metrics = self._update()
                    is_due = self._ppo.updates % self._checkpoint_updates == 0
                    is_candidate = is_due or self._ppo.steps >= total_steps
                    if is_candidate:
                        metrics |= self._scored()
                    snapshot = self._snapshot(is_candidate, metrics.get("score"))
                    self._run.log(metrics)
                    reporter.update(self._ppo.steps, metrics)
                    interruption.check()
                    if is_due:
                        self._save(snapshot)
                self._save(snapshot)
        except RunError as error:
            raise RunError(f"{error}; {self._where_it_stands()}") from error
        except (TrainingDiverged, EnvironmentFailure) as error:
            self._save(snapshot)
            reason = str(error).rstrip(".")
            raise TrainingStopped(f"{reason}; {self._where_it_stands()}") from error
        except TrainingInterrupted as interrupted:
            self._save(snapshot)
            number = interrupted.signal_number
            name = signal.Signals(number).name
            raise TrainingInterrupted(f"{name}: {self._where_it_stands()}", number) from None
        except BaseException:
            self._save(snapshot)
            raise
        finally:
            # Triton reports everything of its own that is still frozen at exit as a leak.
            gc.unfreeze()

    def _update(self) -> dict[str, Any]:
        """Return the metrics of one update, with its speed and the run's time so far."""
        began, steps = time.perf_counter(), self._ppo.steps
        metrics: dict[str, Any] = self._ppo.update()
        seconds = time.perf_counter() - began
        self._seconds += seconds
        metrics["seconds"] = self._seconds
        metrics["steps_per_second"] = (self._ppo.steps - steps) / seconds
        return metrics

    def _scored(self) -> dict[str, float]:
        """Return the agent's `score`, empty if nothing judges it."""
        if self._score is None:
            return {}
        began = time.perf_counter()
        score = self._score()
        self._seconds += time.perf_counter() - began
        return {"score": score}

    def _snapshot(self, is_candidate: bool, score: float | None = None) -> _Snapshot:
        tensors, data = self._ppo.checkpoint()
        merit, error = -math.inf, 0.0
        if score is not None:
            merit = score
        elif is_candidate:
            merit, error = _mean_and_error(self._ppo.collector.episodes.returns)
        return _Snapshot(
            update=self._ppo.updates,
            tensors=tensors,
            data={"ppo": data, "steps": self._ppo.steps},
            seconds=self._seconds,
            merit=merit,
            error=error,
        )

    def _save(self, snapshot: _Snapshot) -> None:
        """Write the snapshot as a checkpoint, unless it is one already."""
        if snapshot.update == self._saved_update:
            return
        is_best = snapshot.merit + snapshot.error >= self._record
        if is_best:
            self._best_step = snapshot.data["steps"]
        self._record = max(self._record, snapshot.merit - snapshot.error)
        record = self._record if math.isfinite(self._record) else None
        data = {
            "ppo": snapshot.data["ppo"],
            "record": record,
            "best_step": self._best_step,
            "seconds": snapshot.seconds,
        }
        is_agent = {name: name.startswith(AGENT_GROUPS) for name in snapshot.tensors}
        env = self._ppo.collector.env
        checkpoint = Checkpoint(
            step=snapshot.data["steps"],
            update=snapshot.update,
            observation_space=env.single_observation_space,
            action_space=env.single_action_space,
            weights={name: x for name, x in snapshot.tensors.items() if is_agent[name]},
            trainer={name: x for name, x in snapshot.tensors.items() if not is_agent[name]},
            data=data,
        )
        self._run.save(checkpoint, best=is_best)
        self._saved_update = snapshot.update

    def _where_it_stands(self) -> str:
        if self._saved_update is None:
            return f"nothing was saved in {self._run.path} yet"
        return (
            f"saved after update {self._saved_update}; "
            f"continue with: doxastic train --resume {self._run.path}"
        )


def _mean_and_error(returns: Collection[float]) -> tuple[float, float]:
    """Return the mean and its standard error; minus infinity and 0 for fewer than two."""
    if len(returns) < 2:
        return -math.inf, 0.0
    return statistics.fmean(returns), statistics.stdev(returns) / math.sqrt(len(returns))
