"""The loop that trains a language model: update, evaluate, log, save; and what may stop it."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable
from typing import Any

from doxastic.checkpoints import Checkpoint
from doxastic.disk import RunError
from doxastic.interruption import Interruption, TrainingInterrupted
from doxastic.language.optimization import TrainingDiverged
from doxastic.language.trainer import Trainer, TrainerState
from doxastic.progress import Reporter
from doxastic.runs import RunFolder


class TrainingStopped(RuntimeError):
    """Training could not go on; what was reached before is in the run folder."""


class Loop:
    """Trains for the configured updates, saving on the way and whatever stops it.

    The best checkpoint is that of the lowest loss on held-out text, saved as soon as it is found;
    without such text it is the last. In several processes all run the loop, and the first alone
    writes.

    Args:
        trainer: What is trained.
        run: The locked run folder in the first process, None in the others.
        checkpoint_updates: Updates between two checkpoints.
        make_reporter: Gives what shows the progress, when training begins.
        resume: The command that goes on with the run, for messages.
        sample: Called after an update with its number, in the first process.
        base: Identity of the model underneath what is trained, for those who go on with it.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: RunFolder | None,
        *,
        checkpoint_updates: int,
        make_reporter: Callable[[], Reporter],
        resume: str,
        sample: Callable[[int], None] | None = None,
        base: str | None = None,
    ) -> None:
        self._trainer, self._run, self._make_reporter = trainer, run, make_reporter
        self._checkpoint_updates, self._evaluates = checkpoint_updates, trainer.evaluates
        self._resume, self._sample, self._base = resume, sample, base
        self._saved_update: int | None = None
        self._lowest = math.inf
        self._lowest_update: int | None = None
        self._evaluations_since = 0
        self._seconds = 0.0
        self._is_between_updates = True

    @property
    def lowest(self) -> float | None:
        """The lowest loss on held-out text so far, in nats per token."""
        return self._lowest if math.isfinite(self._lowest) else None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            KeyError, RuntimeError, ValueError: If it does not fit the trainer.
        """
        data = checkpoint.data
        self._trainer.load_state_dict(
            TrainerState(dict(checkpoint.weights), dict(checkpoint.trainer), data["trainer"])
        )
        lowest, update = data["lowest"], data.get("lowest_update")
        # Without the checkpoint that reached it, a worse one would pass for the best, of that loss.
        if lowest is not None and self._keeps(update):
            self._lowest, self._lowest_update = lowest, update
        self._evaluations_since, self._seconds = data["evaluations_since"], data["seconds"]
        self._saved_update = checkpoint.update

    def _keeps(self, update: int | None) -> bool:
        """Return whether the checkpoint of an update is still there."""
        if update is None:
            # One of an earlier version, which did not say where the lowest loss was.
            return True
        run = self._run
        return self._trainer.ranks.from_main(lambda: run is not None and run.keeps(update))

    def train(self) -> None:
        """Update to the end or until the loss on held-out text stays up, then save.

        Raises:
            TrainingStopped: If training diverged.
            TrainingInterrupted: After SIGINT or SIGTERM.
            RunError: If the run folder cannot be written.
        """
        self._reporter = self._make_reporter()
        try:
            with Interruption() as interruption:
                # Before the first update already: a disk that refuses should say so at once.
                self._save()
                # What is there now stays; a collection would go through all that PyTorch made.
                gc.collect()
                gc.freeze()
                while not self._is_finished():
                    self._advance(interruption)
                self._save()
        except RunError as error:
            raise RunError(f"{error}; {self._where_it_stands()}") from error
        except TrainingDiverged as error:
            self._save()
            raise TrainingStopped(f"{error}; {self._where_it_stands()}") from error
        except TrainingInterrupted as interrupted:
            self._save_if_whole()
            number = interrupted.signal_number
            name = signal.Signals(number).name
            raise TrainingInterrupted(f"{name}: {self._where_it_stands()}", number) from None
        except BaseException:
            self._save_if_whole()
            raise
        finally:
            self._reporter.close()
            # Triton reports everything of its own that is still frozen at exit as a leak.
            gc.unfreeze()

    def _is_finished(self) -> bool:
        config = self._trainer.config
        is_stale = 0 < config.patience <= self._evaluations_since
        return is_stale or self._trainer.updates >= config.updates

    def _advance(self, interruption: Interruption) -> None:
        """Do one update and all that is due after it."""
        metrics = self._update()
        self._is_between_updates = False
        update, is_best = self._trainer.updates, False
        if self._evaluates and self._is_due(self._trainer.config.evaluation_updates):
            is_best = self._evaluate(metrics)
        self._trainer.ranks.from_main(lambda: self._tell(update, metrics))
        self._is_between_updates = True
        if is_best or self._is_due(self._checkpoint_updates):
            self._save(is_best)
        if self._trainer.ranks.any(interruption.received is not None):
            # Here, where all processes are.
            self._save()
            raise TrainingInterrupted("asked to stop", interruption.received or signal.SIGTERM)

    def _update(self) -> dict[str, Any]:
        """Return the metrics of one update, with its speed and the run's time so far."""
        began, tokens = time.perf_counter(), self._trainer.tokens
        metrics: dict[str, Any] = self._trainer.update()
        seconds = time.perf_counter() - began
        self._seconds += seconds
        metrics["steps"] = self._trainer.updates
        metrics["seconds"] = self._seconds
        metrics["tokens_per_second"] = (self._trainer.tokens - tokens) / seconds
        return metrics

    def _is_due(self, interval: int) -> bool:
        updates = self._trainer.updates
        return updates % interval == 0 or updates >= self._trainer.config.updates

    def _evaluate(self, metrics: dict[str, Any]) -> bool:
        """Add `held_out_loss` to the metrics and return whether it is the lowest so far."""
        loss = metrics["held_out_loss"] = self._trainer.evaluate()
        is_best = loss < self._lowest
        if is_best:
            self._lowest, self._lowest_update = loss, self._trainer.updates
        self._evaluations_since = 0 if is_best else self._evaluations_since + 1
        return is_best

    def _tell(self, update: int, metrics: dict[str, Any]) -> None:
        """Log the metrics, show them, and write the samples that are due."""
        assert self._run is not None  # The first process has it, and only it comes here.
        self._run.log(metrics)
        self._reporter.update(update, metrics)
        if self._sample is not None:
            self._sample(update)

    def _save(self, is_best: bool = False) -> None:
        """Write a checkpoint of the last update, unless there is one already."""
        if self._trainer.updates == self._saved_update:
            return
        state = self._trainer.state_dict()
        self._trainer.ranks.from_main(lambda: self._write(state, is_best))
        self._saved_update = self._trainer.updates

    def _write(self, state: TrainerState, is_best: bool) -> None:
        assert self._run is not None  # The first process has it, and only it comes here.
        checkpoint = Checkpoint(
            step=self._trainer.updates,
            update=self._trainer.updates,
            weights=state.weights,
            trainer=state.tensors,
            data={
                "trainer": state.data,
                "lowest": self.lowest,
                "lowest_update": self._lowest_update,
                "base": self._base,
                "evaluations_since": self._evaluations_since,
                "seconds": self._seconds,
            },
        )
        self._run.save(checkpoint, best=is_best or not self._evaluates)

    def _save_if_whole(self) -> None:
        """Save before an unforeseen exception goes on, where that gives an exact checkpoint.

        An update leaves everything as it was if it fails, but one that is done and not yet
        evaluated and logged must be made again; and other processes know nothing of the exception.
        """
        if (
            self._trainer.ranks.world == 1
            and self._is_between_updates
            and not self._trainer.is_torn
        ):
            self._save()

    def _where_it_stands(self) -> str:
        if self._saved_update is None:
            return "nothing was saved yet"
        return f"saved after update {self._saved_update}; continue with: {self._resume}"
