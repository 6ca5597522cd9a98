"""Training from an experiment to a run folder, and agents back from run folders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.evaluation import evaluate
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.ppo import PPO
from doxastic.checkpoints import Checkpoint, CheckpointError
from doxastic.configuration import ConfigError, dump_yaml
from doxastic.devices import threads, torch_device
from doxastic.envs.make import make_vector_env
from doxastic.experiment import (
    DEFAULT_PRESET,
    Experiment,
    build_agent,
    from_dict,
    load_preset,
    override,
    to_dict,
)
from doxastic.loop import Loop
from doxastic.progress import make_reporter
from doxastic.runs import RunFolder, run_and_checkpoint
from doxastic.spaces import check_same_space

# What a resumed run may change: the rest would make the saved weights or statistics unfit.
_CHANGEABLE = ("total_steps", "device", "threads", "checkpoint_updates", "ppo", "evaluation")
# What of `ppo` it may not change: tensors of the checkpoint come and go with these.
_FIXED = ("normalize_observation", "privileged_critic")
# Added to the evaluation's seed where checkpoints are judged.
_SELECTION = 500_000_000


class EvaluationFailed(RuntimeError):
    """The evaluation after training failed; what was trained is in the run folder."""


def train(
    experiment: Experiment | str | Path | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Path:
    """Train an agent, evaluate it, draw the figures, and return the run folder.

    ```python
    run = doxastic.train("noisy-cartpole", total_steps=100_000, memory={"kind": "gru"})
    ```

    Args:
        experiment: An experiment, the name of a preset or the path of a YAML file; by default
            the preset `noisy-cartpole`, or with `resume` the run's own experiment.
        run_dir: A new or empty folder for the run; by default `runs/<name>`.
        resume: A run folder to continue from its last checkpoint, bit for bit on the same
            machine and with as many threads; or one of its folders `checkpoints/step-<n>`.
        progress: Whether to show progress and results.
        **overrides: Fields of `Experiment` to replace; sections as dictionaries.

    Raises:
        ConfigError: If the experiment cannot be used.
        RunError: If the run folder cannot be used or written.
        CheckpointError: If the checkpoint to continue from is damaged or of another kind.
        TrainingStopped: If training diverged or the environment failed.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when the run is saved.
        EvaluationFailed: If the evaluation after the training failed; the run is saved.
    """
    if resume is not None:
        if run_dir is not None:
            raise ConfigError("run_dir and resume are both given; a resumed run keeps its folder")
        return _resume(resume, experiment, overrides, progress)
    experiment = override(_as_experiment(experiment or DEFAULT_PRESET), overrides)
    with threads(experiment.threads), _environment(experiment) as env:
        ppo = _build_ppo(experiment, env)
        _check_evaluation(experiment)
        folder = RunFolder.create(to_dict(experiment), name=experiment.folder_name, path=run_dir)
        with folder as run:
            _train(experiment, _build_loop(experiment, ppo, run), run, progress)
    return run.path


def load(run: str | Path, which: str = "best", device: str = "cpu") -> Agent:
    """Return the agent of a run, ready for `agent.predict(observation, state, episode_start)`.

    Args:
        run: A run folder.
        which: `best`, `last` or the name of a checkpoint, `step-<n>`.
        device: Where the network runs.

    Raises:
        RunError: If there is no run.
        CheckpointError: If the checkpoint is missing, damaged or of another version.
    """
    folder = RunFolder(run)
    experiment = override(from_dict(folder.config), {"device": device})
    checkpoint = folder.load(which)
    observation_space, action_space = checkpoint.spaces
    policy = build_agent(experiment, observation_space, action_space)
    normalizer = None
    if experiment.ppo.normalize_observation:
        normalizer = ObservationNormalizer(observation_space)
    try:
        policy.load_state_dict(_group(checkpoint.weights, "policy/"))
        if normalizer is not None:
            normalizer.load_state_dict(_group(checkpoint.weights, "observation_normalizer/"))
    except RuntimeError as error:
        raise _unfit(folder, error) from error
    return Agent(policy, normalizer)


def _resume(
    path: str | Path,
    experiment: Experiment | str | Path | None,
    overrides: Mapping[str, Any],
    progress: bool,
) -> Path:
    """Continue the run at `path` and return its folder."""
    run_path, which = run_and_checkpoint(Path(path))
    with RunFolder(run_path) as run:
        saved = from_dict(run.config)
        wanted = override(_as_experiment(experiment or saved), overrides)
        _check_changes(saved, wanted, run)
        run.lock()
        checkpoint = run.load(which, with_trainer=True)
        with threads(wanted.threads), _environment(wanted) as env:
            observation_space, action_space = checkpoint.spaces
            check_same_space("observation", env.single_observation_space, observation_space)
            check_same_space("action", env.single_action_space, action_space)
            loop = _build_loop(wanted, _build_ppo(wanted, env), run)
            _check_evaluation(wanted)
            _restore(loop, checkpoint, run)
            # Only now, when the run can go on, is its folder changed.
            run.rewind(checkpoint.step)
            if wanted != saved:
                run.write("config.yaml", dump_yaml(to_dict(wanted)).encode())
            _train(wanted, loop, run, progress, checkpoint.step)
    return run.path


def _train(
    experiment: Experiment,
    loop: Loop,
    run: RunFolder,
    progress: bool,
    start: int | None = None,
) -> None:
    """Run the loop, from step `start` if it goes on, then evaluate the best agent and draw."""
    if progress:
        verb = "training" if start is None else "continuing"
        print(f"{verb} {experiment.env.id} into {run.path}", flush=True)
    reporter = make_reporter(experiment.total_steps, start or 0, shown=progress)
    try:
        loop.train(experiment.total_steps, reporter)
    finally:
        reporter.close()
    _evaluate(run, load(run.path, device=experiment.device), progress)


def _evaluate(run: RunFolder, agent: Agent, progress: bool) -> None:
    """Evaluate and draw; whatever stops it, say that the training is saved."""
    from doxastic.results import evaluate_run

    saved = f"the training is saved; evaluate it with: doxastic evaluate {run.path}"
    try:
        evaluate_run(run, agent=agent, shown=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted in the evaluation; {saved}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise EvaluationFailed(f"the evaluation failed with {reason}; {saved}") from error


def _check_evaluation(experiment: Experiment) -> None:
    """Raise `ConfigError` if the environment does not take a level of the evaluation."""
    levels = experiment.evaluation.noise or ()
    for level in levels:
        try:
            make_vector_env(experiment.env, num_envs=1, noise=(level,)).close()
        except ValueError as error:
            raise ConfigError(
                f"evaluation.noise is {levels}: {str(error).rstrip('.')}. Give levels that the "
                "environment takes, or None for its own noise."
            ) from error


def _build_loop(experiment: Experiment, ppo: PPO, run: RunFolder) -> Loop:
    return Loop(
        ppo,
        run,
        checkpoint_updates=experiment.checkpoint_updates,
        score=_judge(experiment, ppo),
    )


def _restore(loop: Loop, checkpoint: Checkpoint, run: RunFolder) -> None:
    try:
        loop.restore(checkpoint)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _unfit(run, error) from error


def _judge(experiment: Experiment, ppo: PPO) -> Callable[[], float] | None:
    """Return what judges the agent in training, or None if its training returns do.

    The episodes are others than those of the evaluation, which would flatter the chosen one.
    """
    settings = experiment.evaluation
    if settings.selection_episodes == 0:
        return None
    agent = Agent(ppo.policy, ppo.observation_normalizer)
    seed = (settings.seed + _SELECTION) % 2**31

    def score() -> float:
        evaluation = evaluate(
            agent,
            experiment.env,
            experiment.env.noise,
            settings.selection_episodes,
            seed,
            deterministic=settings.deterministic,
        )
        return float(evaluation.mean.mean())

    return score


def _as_experiment(experiment: Experiment | str | Path) -> Experiment:
    return experiment if isinstance(experiment, Experiment) else load_preset(experiment)


def _build_ppo(experiment: Experiment, env: VectorEnv) -> PPO:
    policy = build_agent(experiment, env.single_observation_space, env.single_action_space)
    return PPO(
        policy,
        env,
        experiment.ppo,
        experiment.total_steps,
        seed=experiment.seed,
        device=torch_device(experiment.device),
        auxiliary=experiment.auxiliary,
    )


def _check_changes(saved: Experiment, wanted: Experiment, run: RunFolder) -> None:
    """Raise `ConfigError` if a resumed run is asked to be another experiment."""
    before, after = to_dict(saved), to_dict(wanted)
    changed = [key for key in before if before[key] != after[key] and key not in _CHANGEABLE]
    changed += [f"ppo.{key}" for key in _FIXED if before["ppo"][key] != after["ppo"][key]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} differs from {run.path / 'config.yaml'}; a resumed run may "
            f"change only {', '.join(_CHANGEABLE)}. Train a new run for the rest."
        )


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _unfit(run: RunFolder, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(
        f"the checkpoint does not fit {run.path / 'config.yaml'}: {reason}. "
        "Restore the config.yaml the run was trained with."
    )


@contextlib.contextmanager
def _environment(experiment: Experiment) -> Iterator[VectorEnv]:
    env = make_vector_env(experiment.env)
    try:
        yield env
    finally:
        env.close()
