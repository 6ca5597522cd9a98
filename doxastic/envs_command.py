"""`doxastic envs`: the table of the tasks, and one episode of a task as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from doxastic.configuration import ConfigError, from_dict, nearest, unknown
from doxastic.options import parse

if TYPE_CHECKING:
    from doxastic.envs.batched import BatchedPOMDP
    from doxastic.episodes import Actor

_ACTIONS = ("list", "show")
# Of the table where the output is no terminal, so that no row is broken.
_WIDE = 180


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the tasks of the suite with what they ask, their spaces, noise and best known return."""

    group: Literal["all", "confidence", "control", "memory", "games"] = "all"
    """Which group to list."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Play one episode and write it as a GIF or a PNG strip."""

    id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
    """The task: doxastic/Tiger-v0, or Tiger for short."""
    agent: Path | None = None
    """A run folder: its agent plays in the environment of its training; its belief is drawn."""
    policy: Literal["best", "random"] = "best"
    """Who plays without an agent: the best policy known on the exact posterior, which is random
    where there is none, or random actions."""
    seed: int = 0
    """Seed of the episode; the same episode as gymnasium.make(ID).reset(seed=SEED)."""
    noise: float | None = None
    """Noise level of the episode; by default drawn from the levels of the task, or of the run."""
    steps: int = 60
    """Most steps to play."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task, such as variant=hard; with --agent those of its run."""
    output: Path | None = None
    """Where to write: a .gif, or a .png with up to four steps below each other; by default
    TASK.gif in the current folder."""


def envs(words: Sequence[str]) -> None:
    """Run `doxastic envs`."""
    words = list(words)
    action = words.pop(0) if words and not words[0].startswith("-") else "list"
    if action not in _ACTIONS:
        raise ConfigError(unknown(f"action {action!r} of doxastic envs", action, _ACTIONS))
    if action == "show":
        _show(words)
        return
    description = (
        "List the tasks with what they ask, their spaces, noise levels, longest episode and best "
        "known return.\n\n"
        "usage: doxastic envs [list] [--group GROUP]\n"
        "       doxastic envs show ID [OPTIONS]    play an episode and draw it; see "
        "doxastic envs show --help\n\n"
        "examples:\n"
        "  doxastic envs --group confidence\n"
        "  doxastic envs show Tiger --noise 0.2\n"
        "  doxastic envs show SequentialTest --agent runs/sequential-test-hard"
    )
    print_table(parse(ListOptions, words, "doxastic envs", description).group)


def print_table(group: str) -> None:
    """Print the table of the tasks of a group, or of all."""
    from rich.console import Console
    from rich.table import Table

    from doxastic.envs.catalog import CATALOG
    from doxastic.envs.registration import TASKS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "question", "observation", "action", "noise", "steps", "best return"):
        table.add_column(name, justify="right" if name == "steps" else "left", no_wrap=name == "id")
    before = None
    for task_id, entry in CATALOG.items():
        if group not in ("all", entry.group):
            continue
        if entry.group != before:
            before = entry.group
            table.add_row(f"[bold cyan]{entry.group}[/]")
        task = TASKS[task_id]()
        best = "not known" if entry.reference is None else f"{entry.reference:.3g}, {entry.source}"
        table.add_row(
            task_id,
            entry.question,
            space_name(task.observation_space),
            space_name(task.action_space),
            ", ".join(f"{level:g}" for level in task.noise),
            str(entry.steps),
            best,
        )
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)
    console.print("\nWhat the columns mean, and how the returns were computed: docs/envs/README.md")


def space_name(space: Any) -> str:
    """Return a space in a few letters: Box(2), Discrete(3), MultiDiscrete(52 x 3)."""
    kind = type(space).__name__
    if kind == "Discrete":
        return f"Discrete({space.n})"
    if kind == "MultiDiscrete":
        sizes = space.nvec.tolist()
        many = len(sizes) > 2 and len(set(sizes)) == 1
        inside = f"{len(sizes)} x {sizes[0]}" if many else ", ".join(map(str, sizes))
        return f"MultiDiscrete({inside})"
    return f"{kind}({', '.join(map(str, space.shape))})"


def _show(words: Sequence[str]) -> None:
    description = (
        "Play one episode of a task and draw, side by side, the true state, the observation over "
        "time, the exact posterior where one is known, and with --agent the agent's belief.\n\n"
        "The posterior starts from the noise levels of the task, or of the run, all equally "
        "likely, the level of the episode among them.\n\n"
        "examples:\n"
        "  doxastic envs show Tiger --noise 0.2 --seed 3\n"
        "  doxastic envs show SequentialTest --kwargs variant=hard --output test.png\n"
        "  doxastic envs show CartPole --agent runs/noisy-cartpole --noise 0.1 --steps 200"
    )
    options = parse(ShowOptions, words, "doxastic envs show", description)
    task_id = resolve(options.id)
    output = options.output or Path(f"{task_id.split('/')[1].split('-')[0]}.gif")
    if output.suffix.lower() not in (".gif", ".png"):
        raise ConfigError(f"--output is {output}; expected a name that ends in .gif or .png")
    if options.steps < 1:
        raise ConfigError(f"--steps is {options.steps}; expected at least 1")
    show(task_id, options, output)


def resolve(name: str) -> str:
    """Return the registered id of a task that is given by its id or its short name.

    Raises:
        ConfigError: If there is no such task.
    """
    from doxastic.envs.registration import TASKS

    short = {task_id.split("/")[1].split("-")[0].lower(): task_id for task_id in TASKS}
    if name in TASKS:
        return name
    word = name.rpartition("/")[2].partition("-")[0].lower()
    if word == name.lower() and word in short:
        return short[word]
    match = short[word] if word in short else short.get(nearest(word, short) or "")
    hint = f"did you mean {match}?" if match else "doxastic envs lists the tasks"
    raise ConfigError(f"there is no task {name!r}; {hint}")


def show(task_id: str, options: ShowOptions, output: Path) -> None:
    """Play the episode, draw it and write the file.

    Raises:
        ConfigError: If the agent is one of another environment.
        RunError: If there is no such run, or the file cannot be written.
    """
    from doxastic.disk import disk_errors, write_atomically
    from doxastic.envs.noisy_task import NoisyTask
    from doxastic.envs.references.episode_reference import episode_reference
    from doxastic.episode_figure import EpisodeFigure
    from doxastic.episode_files import gif, strip
    from doxastic.episodes import RandomActor, ReferenceActor, record

    arguments, previous_action = dict(options.kwargs), True
    actor: Actor
    if options.agent is not None:
        actor, arguments, previous_action = _agent_of(options.agent, task_id, options)
    task, prior = _tasks(task_id, arguments, options.noise)
    reference = None if isinstance(prior, NoisyTask) else episode_reference(prior)
    if options.agent is None:
        is_best = options.policy == "best" and reference is not None
        actor = (
            ReferenceActor(reference) if is_best and reference else RandomActor(task, options.seed)
        )
    episode = record(
        task,
        actor,
        reference,
        seed=options.seed,
        steps=options.steps,
        previous_action=previous_action,
    )
    figure = EpisodeFigure(episode, task_id)
    image = strip(figure) if output.suffix.lower() == ".png" else gif(figure)
    with disk_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, image)
    end = "over" if episode.is_over else f"cut off by --steps {options.steps}"
    print(
        f"{task_id} with noise {episode.noise:g}, played by {episode.actor}: "
        f"{len(episode.moments) - 1} steps, {end}, return {episode.moments[-1].total:.3f}"
    )
    if reference is None:
        print("There is no exact posterior for this task, or not with this noise: no panel for it.")
    print(output)


def _agent_of(run: Path, task_id: str, options: ShowOptions) -> tuple[Actor, dict[str, Any], bool]:
    """Return the agent of a run, the arguments of its task, and whether it sees its actions."""
    from doxastic.episodes import AgentActor
    from doxastic.experiment import Experiment
    from doxastic.runs import RunFolder

    experiment = from_dict(Experiment, RunFolder(run).config)
    env = experiment.env
    if env.id != task_id:
        raise ConfigError(
            f"the agent of {run} was trained on {env.id}, not on {task_id}; show {env.id}, or give "
            f"a run of {task_id}"
        )
    if env.posterior:
        raise ConfigError(
            f"the agent of {run} sees the exact posterior, not the task; show another agent, or "
            "none for the best policy known"
        )
    if options.kwargs:
        raise ConfigError("--kwargs and --agent are both given; an agent plays the task of its run")
    from doxastic.training import load

    arguments = {"noise_kind": env.noise_kind, **env.kwargs}
    if env.noise is not None:
        arguments["noise"] = env.noise
    agent = load(run)
    has_belief = hasattr(agent.policy.memory, "belief") and experiment.memory.readout != "none"
    if not has_belief:
        print(f"The agent of {run} holds no explicit belief: no panel for it.")
    name = run.resolve().name
    return AgentActor(agent, name, has_belief=has_belief), arguments, env.previous_action


def _tasks(
    task_id: str, arguments: dict[str, Any], noise: float | None
) -> tuple[BatchedPOMDP, BatchedPOMDP]:
    """Return the task to play, and the one whose levels the posterior starts from."""
    from doxastic.envs.registration import make_task

    try:
        prior = make_task(task_id, **arguments)
        if noise is None:
            return prior, prior
        levels = sorted({*prior.noise, noise})
        return make_task(task_id, **{**arguments, "noise": noise}), make_task(
            task_id, **{**arguments, "noise": levels}
        )
    except TypeError as error:
        raise ConfigError(f"{task_id} rejects the arguments {arguments}: {error}") from error
