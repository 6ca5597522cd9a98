"""`doxastic lm generate` and `doxastic lm chat`: continuing texts, and talking with a model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from doxastic.configuration import ConfigError
from doxastic.disk import check_output
from doxastic.language.sampling_config import SamplingConfig
from doxastic.lm.loading import LoadingOptions, load, load_start
from doxastic.options import parse

if TYPE_CHECKING:
    from doxastic.language.generation import Generation, Piece
    from doxastic.language.model import LanguageModel
    from doxastic.language.prompt_cache import PromptCache
    from doxastic.memory.state import CoreState

_GENERATE_HELP = """\
Continue texts with a language model.

usage: doxastic lm generate MODEL [--prompt TEXT ...] [OPTIONS]. MODEL is a .pth, a .safetensors
file, a folder or a run folder. Every prompt is continued, all at once; without one the model begins
a document of its own. A continuation ends at the end of the document, before a --stop string or
after --max-new-tokens.

examples:
  doxastic lm generate runs/tiny --prompt "To be, or"
  doxastic lm generate rwkv7.pth --file story.txt --temperature 0.8 --top-p 0.9
  doxastic lm generate rwkv7.pth --prompt "2+2=" "3+5=" --temperature 0 --stop $'\\n' --json
  doxastic lm generate rwkv7.pth --prompt "Once upon a time" --count 5 --seed 7
  doxastic lm generate rwkv7.pth --file book.txt --save-state book.state
  doxastic lm generate rwkv7.pth --prompt " And then" --state book.state"""

_CHAT_HELP = """\
Talk with a language model that was trained on conversations, such as RWKV's G1 models.

usage: doxastic lm chat MODEL [OPTIONS]. However long a conversation gets, it takes no more memory
and no more time. Messages may come from a file or a pipe, one a line.

commands in the conversation:
  /retry        another reply to the last message
  /undo         take the last turn back
  /reset        forget everything
  /save FILE    write the state of the conversation
  /load FILE    go on from one
  /help /quit

examples:
  doxastic lm chat rwkv7-g1.pth
  doxastic lm chat rwkv7-g1.pth --system "You answer in one sentence." --think brief
  printf 'hi\\nwho are you?\\n' | doxastic lm chat rwkv7-g1.pth --seed 1"""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What is continued, and how."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """The model."""
    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    file: Path | None = None
    """A text to continue from a file; - for standard input."""
    count: int = 1
    """Continuations of each prompt, which is read once."""
    json: bool = False
    """Print a JSON object for each continuation, a line each, when it is complete."""
    state: Path | None = None
    """Start from this state: one of --save-state, or a tuned initial state."""
    opens: bool | None = None
    """Whether a prompt is the beginning of a document; by default unless --state holds the state
    of a text, which it then continues."""
    save_state: Path | None = None
    """Write the state after the continuation, of one prompt."""
    cache: Path | None = None
    """Keep the states of prompts in this file: those that begin alike are read once for all."""
    loading: Annotated[LoadingOptions, tyro.conf.arg(name="")] = field(
        default_factory=LoadingOptions
    )
    """How the model is loaded."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(
        default_factory=SamplingConfig
    )
    """How tokens are chosen."""


# As RWKV's chat demo has them. Source: ChatRWKV, API_DEMO_CHAT.py.
_CHAT_SAMPLING = SamplingConfig(
    top_p=0.3,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    penalty_decay=0.996,
    max_new_tokens=2048,
)


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Whom one talks with, and how it replies."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """The model."""
    system: str = ""
    """What the model is told first."""
    think: Literal["off", "on", "brief", "long", "skip"] = "off"
    """Whether it thinks before it replies; skip makes it go on as if it had."""
    state: Path | None = None
    """Start from this state: a conversation of /save, or a tuned initial state."""
    loading: Annotated[LoadingOptions, tyro.conf.arg(name="")] = field(
        default_factory=LoadingOptions
    )
    """How the model is loaded."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = _CHAT_SAMPLING
    """How tokens are chosen."""


def generate(words: Sequence[str]) -> None:
    """Run `doxastic lm generate`."""
    options = parse(GenerateOptions, words, "doxastic lm generate", _GENERATE_HELP)
    prompts = _prompts(options)
    if options.save_state and len(prompts) > 1:
        raise ConfigError(f"--save-state is for one continuation; {len(prompts)} are asked for")
    for option, path in (("--save-state", options.save_state), ("--cache", options.cache)):
        if path is not None:
            check_output(path, option)
    model, tokenizer = load(options.model, options.loading)
    from doxastic.language.generation import stream

    state, opens = _start(options, model)
    cache = _open_cache(options, model, len(set(prompts)) < len(prompts))
    began = time.monotonic()
    pieces = stream(
        model, tokenizer, prompts, options.sampling, state=state, opens=opens, cache=cache
    )
    finished = _print(pieces, prompts, options.json)
    if cache is not None and options.cache:
        cache.save(options.cache)
    if options.save_state:
        from doxastic.language.state_files import save_state

        save_state(options.save_state, finished[0].state, model, kind="text")
    tokens, seconds = sum(len(done.tokens) for done in finished), time.monotonic() - began
    print(f"{tokens:,} tokens in {seconds:.1f} s", file=sys.stderr)


def chat(words: Sequence[str]) -> None:
    """Run `doxastic lm chat`."""
    options = parse(ChatOptions, words, "doxastic lm chat", _CHAT_HELP)
    model, tokenizer = load(options.model, options.loading)
    from doxastic.language.chat import Chat
    from doxastic.language.state_files import load_state
    from doxastic.lm.conversation import converse

    file = load_state(options.state, model) if options.state else None
    tuned = file.state if file and file.kind == "initial" else None
    talk = Chat(
        model, tokenizer, options.sampling, system=options.system, think=options.think, state=tuned
    )
    if options.state and tuned is None:
        talk.load(options.state)
    converse(talk)


def _prompts(options: GenerateOptions) -> list[str]:
    """Return every prompt as often as it is to be continued."""
    if options.count < 1:
        raise ConfigError(f"--count is {options.count}; expected 1 or more")
    prompts = list(options.prompt)
    if options.file is not None:
        prompts.append(_read(options.file))
    return [prompt for prompt in prompts or [""] for _ in range(options.count)]


def _read(path: Path) -> str:
    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--file {path} is not UTF-8 at byte {error.start}") from error
    if not text:
        raise ConfigError(f"--file {path} is empty; expected the text to continue")
    return text


def _start(options: GenerateOptions, model: LanguageModel) -> tuple[CoreState | None, bool]:
    """Return the state that the prompts start from, and whether they open documents."""
    if options.state is None:
        return None, options.opens is not False
    expected = "one of --save-state or a tuned initial state"
    file = load_start(options.state, model, ("initial", "text"), expected)
    return file.state, file.kind == "initial" if options.opens is None else options.opens


def _open_cache(
    options: GenerateOptions, model: LanguageModel, repeats: bool
) -> PromptCache | None:
    """Return the cache if there is a file for it, or prompts to read once that occur twice."""
    if options.cache is None and (not repeats or options.state is not None):
        return None
    from doxastic.language.prompt_cache import PromptCache

    cache = PromptCache(model)
    if options.cache and options.cache.exists():
        cache.load(options.cache)
    return cache


def _print(pieces: Iterable[Piece], prompts: Sequence[str], as_json: bool) -> list[Generation]:
    """Print the continuations: one while it is written, several each when it is complete."""
    finished: dict[int, Generation] = {}
    if len(prompts) == 1 and not as_json:
        print(prompts[0], end="", flush=True)
    for row, text, done in pieces:
        if done is not None:
            finished[row] = done
        if as_json and done is not None:
            print(json.dumps(_as_json(row, prompts[row], done), ensure_ascii=False), flush=True)
        elif not as_json and len(prompts) == 1:
            print(text, end="" if done is None else "\n", flush=True)
        elif not as_json and done is not None:
            print(f"--- {row + 1} ({done.reason})\n{prompts[row]}{done.text}", flush=True)
    return [finished[row] for row in range(len(prompts))]


def _as_json(row: int, prompt: str, done: Generation) -> dict[str, object]:
    return {
        "row": row,
        "prompt": prompt,
        "text": done.text,
        "reason": done.reason,
        "prompt_tokens": done.prompt_tokens,
        "tokens": len(done.tokens),
    }
