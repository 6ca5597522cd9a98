"""The text of one continuation while its tokens come: what may be shown, and when it ends."""

from __future__ import annotations

from typing import Literal

from doxastic.language.sampling_config import SamplingConfig
from doxastic.language.tokenizers.base import StreamDecoder, Tokenizer

Reason = Literal["end_of_document", "stop", "length"]
"""Why a continuation ended: the model ended the document, a stop string came, or the length was
reached."""


class Continuation:
    """The text of one row: bytes wait for their character, text waits while it may be a stop."""

    def __init__(
        self, number: int, prompt_tokens: int, tokenizer: Tokenizer, sampling: SamplingConfig
    ) -> None:
        self.number, self.prompt_tokens = number, prompt_tokens
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.reason: Reason | None = None
        self._decoder = StreamDecoder(tokenizer)
        self._end = tokenizer.end_of_document
        self._stop, self._limit = sampling.stop, sampling.max_new_tokens
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token and return the text to show now; `reason` says whether the row has ended."""
        if token == self._end:
            self.reason, text = "end_of_document", self._rest()
        else:
            self.tokens.append(token)
            text = self._release(self._decoder.push(token))
            if self.reason is None and len(self.tokens) == self._limit:
                self.reason, text = "length", text + self._rest()
        if text:
            self.pieces.append(text)
        return text

    def _rest(self) -> str:
        """Return the text that waits, as nothing comes any more."""
        return self._held + self._decoder.finish()

    def _release(self, text: str) -> str:
        """Return waiting and new text up to a stop string, or to what may be its beginning."""
        if not self._stop:
            return text
        text = self._held + text
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.reason = "stop"
            return text[: min(starts)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` are the first ones of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
