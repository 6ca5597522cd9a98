"""`doxastic lm evaluate`: how well a model predicts a text, or does the tasks of lm-eval."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from doxastic.configuration import ConfigError
from doxastic.disk import check_output, disk_errors, write_atomically
from doxastic.lm.loading import LoadingOptions, load, load_start
from doxastic.options import parse
from doxastic.progress import PLAIN_SECONDS, clock

if TYPE_CHECKING:
    from doxastic.language.model import LanguageModel
    from doxastic.language.token_store import TokenStore
    from doxastic.language.tokenizers import Tokenizer

_HELP = """\
Measure how well a language model predicts a text, or does tasks of the lm-eval harness.

usage: doxastic lm evaluate MODEL --data TEXT [OPTIONS]. MODEL is a .pth, a .safetensors file, a
folder or a run folder; TEXT a file, a folder of files, a .jsonl file or a token store.

Every document is read from its beginning to its end, however long, and every token is predicted
from all that stands before it. Printed are
  nats_per_token    the loss; perplexity is its exponential. They compare models of one tokenizer.
  bits_per_byte     compares models of different tokenizers
  accuracy          how often the token was the most probable one

In a .jsonl file with prompt and completion, only the completions count.

examples:
  doxastic lm evaluate runs/tiny --data held-out.txt
  doxastic lm evaluate rwkv7.pth --data books/ --batch-size 16 --output rwkv7-books.json
  doxastic lm evaluate rwkv7.pth --data answers.jsonl --state tuned.safetensors
  doxastic lm evaluate rwkv7.pth --tasks lambada_openai arc_easy --limit 200"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """The model."""
    data: Path | None = None
    """The text: a file, a folder of files, a .jsonl file or a token store."""
    suffixes: tuple[str, ...] = (".txt", ".md", ".jsonl")
    """The files of a folder that are read."""
    field: str = "text"
    """The field of a line of JSONL with the text."""
    state: Path | None = None
    """A tuned initial state, where every document of --data starts."""
    batch_size: int = 8
    """Documents read side by side."""
    window: int = 256
    """Tokens of each read in one call: a matter of speed and memory alone."""
    tasks: tuple[str, ...] = ()
    """Tasks of the lm-eval harness (the extra lm-eval; it downloads what they need)."""
    task_folder: Path | None = None
    """Folder with definitions of tasks of your own, as the harness describes them."""
    limit: int | None = None
    """Examples of each task; by default all."""
    output: Path | None = None
    """Write the result to this file as JSON too."""
    quiet: bool = False
    """Show no progress."""
    loading: Annotated[LoadingOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LoadingOptions
    )
    """How the model is loaded."""


def evaluate(words: Sequence[str]) -> None:
    """Run `doxastic lm evaluate`."""
    options = parse(EvaluateOptions, words, "doxastic lm evaluate", _HELP)
    if (options.data is None) == (not options.tasks):
        raise ConfigError("give either --data or --tasks; see doxastic lm evaluate --help")
    _refuse_unread(options)
    if options.output:
        check_output(options.output, "--output")
    model, tokenizer = load(options.model, options.loading)
    run = _evaluate_tasks if options.tasks else _evaluate_text
    result = {"model": str(options.model), **run(options, model, tokenizer)}
    for name, value in result.items():
        print(f"{name:<18} {value:,.4f}" if isinstance(value, float) else f"{name:<18} {value}")
    if options.output:
        content = json.dumps(result, indent=2, ensure_ascii=False, default=str) + "\n"
        with disk_errors(options.output, "--output"):
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.output, content.encode())


def _refuse_unread(options: EvaluateOptions) -> None:
    """Raise `ConfigError` for an option that the other kind of evaluation has."""
    given = {"--limit": options.limit, "--task-folder": options.task_folder}
    kind, other = "--tasks", "--data"
    if options.tasks:
        given, kind, other = {"--state": options.state}, other, kind
    if unread := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"{unread[0]} is for {kind}, and {other} is given; leave one out")


def _evaluate_text(
    options: EvaluateOptions, model: LanguageModel, tokenizer: Tokenizer
) -> dict[str, Any]:
    from doxastic.language.evaluation import evaluate as evaluate_model

    assert options.data is not None  # One of the two was given.
    start = None
    if options.state is not None:
        start = load_start(options.state, model, ("initial",), "a tuned initial state").state
    with tempfile.TemporaryDirectory() as folder:
        store = _open(options, tokenizer, Path(folder) / "store")
        progress = _Progress(shown=not options.quiet)
        score = evaluate_model(
            model, tokenizer, store,
            state=start, batch_size=options.batch_size,
            window=options.window, progress=progress,
        )  # fmt: skip
        speed = progress.close()
    return {"data": str(options.data), **score.to_dict(), "tokens_per_second": speed}


def _evaluate_tasks(
    options: EvaluateOptions, model: LanguageModel, tokenizer: Tokenizer
) -> dict[str, Any]:
    from doxastic.language.harness import harness_model

    adapter = harness_model(model, tokenizer, options.batch_size)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = None if options.task_folder is None else str(options.task_folder)
    found = simple_evaluate(
        model=adapter,
        tasks=list(options.tasks),
        task_manager=TaskManager(include_path=folder),
        limit=options.limit,
    )
    return {
        f"{task} {measure}": value
        for task, values in found["results"].items()
        for measure, value in values.items()
        if measure not in ("alias", "name")
    }


def _open(options: EvaluateOptions, tokenizer: Tokenizer, folder: Path) -> TokenStore:
    from doxastic.language.token_store import TokenStore, build_store

    text = options.data
    assert text is not None  # Only then is it called.
    if (text / "store.json").is_file():
        return TokenStore.open(text, tokenizer)
    return build_store(text, tokenizer, folder, field=options.field, suffixes=options.suffixes)


class _Progress:
    """Shows on standard error how far it is: on one line of a terminal, elsewhere now and then."""

    def __init__(self, *, shown: bool) -> None:
        self._shown, self._is_terminal = shown, sys.stderr.isatty()
        self._began, self._told = time.monotonic(), time.monotonic()
        self._read = 0

    def __call__(self, read: int, total: int) -> None:
        """Note that `read` of `total` tokens are done."""
        self._read, now = read, time.monotonic()
        if not self._shown or now - self._told < (0.1 if self._is_terminal else PLAIN_SECONDS):
            return
        self._told = now
        left = (total - read) / self._speed()
        line = f"{read:,} of {total:,} tokens   {self._speed():,.0f} tokens/s   {clock(left)} left"
        end = "\r" if self._is_terminal else "\n"
        print(f"{line:<78}", end=end, file=sys.stderr, flush=True)

    def close(self) -> float:
        """Clear the line and return the tokens a second."""
        if self._shown and self._is_terminal:
            print(" " * 78, end="\r", file=sys.stderr, flush=True)
        return self._speed()

    def _speed(self) -> float:
        return self._read / max(time.monotonic() - self._began, 1e-9)
