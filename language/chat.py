"""A conversation whose history is one state: however long it gets, it takes no more memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from doxastic.language.generation import decode
from doxastic.language.model import LanguageModel
from doxastic.language.prefill import prefill
from doxastic.language.prompts import check_vocabulary, encode_prompts
from doxastic.language.sampling import SamplingConfig
from doxastic.language.state_files import load_state, save_state
from doxastic.language.tokenizers.base import Tokenizer
from doxastic.memory.state import CoreState

STOP = "\n\nUser:"
"""What ends a reply, beside the end of the document."""

ThinkMode = Literal["off", "on", "brief", "long", "skip"]

# What follows the user's message, and what the assistant is made to begin with; "skip" shows the
# model thoughts it did not have. Source: RWKV-LM, RWKV-v7/RWKV7-G1x-templates.txt.
_THINK: dict[ThinkMode, tuple[str, str]] = {
    "off": ("", ""),
    "on": ("", " <think"),
    "brief": (" (think a bit)", " <think"),
    "long": (" (think a lot)", " <think"),
    "skip": ("", " <think>\n</think"),
}


class _Turn(NamedTuple):
    message: str
    before: CoreState | None


class Chat:
    r"""A conversation in the format of RWKV's G1 models.

    `System: ...\n\nUser: ...\n\nAssistant: ...\n\nUser: ...`: an empty line ends a turn, so those
    inside a message are removed. After a reply the state is that of having read the conversation
    so far as a text, whatever way the reply ended.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sampling: How replies are chosen; `STOP` is added to its stop strings.
        system: What the assistant is told first; empty for nothing.
        think: Whether the assistant thinks before it replies: off, on, brief, long, or skip,
            which makes it go on as if it had.
        state: A tuned initial state to start from, one row; None for zeros.
        undo_turns: Turns that can be taken back; each keeps a state.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        sampling: SamplingConfig | None = None,
        *,
        system: str = "",
        think: ThinkMode = "off",
        state: CoreState | None = None,
        undo_turns: int = 8,
    ) -> None:
        check_vocabulary(model, tokenizer)
        if think not in _THINK:
            raise ValueError(f"think is {think!r}; expected one of {', '.join(_THINK)}.")
        sampling = SamplingConfig() if sampling is None else sampling
        self._model, self._tokenizer = model, tokenizer
        self._sampling = replace(sampling, stop=(*sampling.stop, STOP))
        self._system, (self._hint, self._opening) = clean(system), _THINK[think]
        self._start = state
        self._state: CoreState | None = None
        self._turns: deque[_Turn] = deque(maxlen=undo_turns)
        self._replies = 0

    @property
    def state(self) -> CoreState | None:
        """The state after the last turn, None before the first one."""
        return self._state

    def say(self, message: str) -> Iterator[str]:
        """Yield the reply piece by piece; it becomes history also where nobody reads it to the end.

        Raises:
            ValueError: The message is empty.
        """
        cleaned = clean(message)
        if not cleaned:
            raise ValueError("the message is empty; write something, or a command such as /help.")
        turn = _Turn(message, self._state)
        system = f"System: {self._system}\n\n" if self._state is None and self._system else ""
        text = f"{system}User: {cleaned}{self._hint}\n\nAssistant:{self._opening}"
        start = self._start if self._state is None else self._state
        ids = encode_prompts(self._tokenizer, [text], opens=self._state is None)
        features, after = prefill(self._model, ids, start)
        self._turns.append(turn)
        self._replies += 1
        pieces = [self._opening] if self._opening else []
        try:
            yield from pieces
            for piece in decode(
                self._model, self._tokenizer, features, after, self._sampling, ids, [self._replies]
            ):
                pieces.append(piece.text)
                yield piece.text
        finally:
            reply = "".join(pieces).removeprefix(self._opening).rstrip() + "\n\n"
            _, self._state = prefill(self._model, [self._tokenizer.encode(reply)], after)

    def reset(self) -> None:
        """Forget the conversation; `undo` brings back none of it."""
        self._state = None
        self._turns.clear()

    def undo(self) -> str:
        """Take the last turn back and return its message.

        Raises:
            ValueError: There is none, or it is too long ago.
        """
        if not self._turns:
            raise ValueError(
                f"there is no turn to take back; the last {self._turns.maxlen} are kept, none from "
                "before a reset or a load."
            )
        turn = self._turns.pop()
        self._state = turn.before
        return turn.message

    def retry(self) -> Iterator[str]:
        """Yield another reply to the last message.

        Raises:
            ValueError: As `undo`.
        """
        return self.say(self.undo())

    def save(self, path: str | Path) -> None:
        """Write the conversation's state to a file.

        Raises:
            ValueError: Nothing was said yet.
        """
        if self._state is None:
            raise ValueError("nothing was said yet; there is no conversation to save.")
        save_state(path, self._state, self._model, kind="chat")

    def load(self, path: str | Path) -> None:
        """Go on from the state in a file, which `save` wrote.

        Raises:
            ValueError: The file is damaged, holds no conversation, or another model's.
        """
        file = load_state(path, self._model)
        if file.kind != "chat":
            raise ValueError(
                f"{path} holds a state of the kind {file.kind!r}; expected a conversation, which "
                "/save wrote."
            )
        self._state = file.state
        self._turns.clear()


def clean(text: str) -> str:
    """Return the text without empty lines and outer white space, as it may stand in a turn."""
    return re.sub(r"\n\s*\n+", "\n", text.replace("\r\n", "\n")).strip()
