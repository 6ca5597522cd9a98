"""The conversation in a terminal, or from a script: messages and commands, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from doxastic.language.chat import Chat

_HELP = """\
/retry        another reply to the last message
/undo         take the last turn back
/reset        forget everything
/save FILE    write the state of the conversation
/load FILE    go on from one
/quit         leave; so does the end of the input"""


def converse(chat: Chat, source: TextIO | None = None, target: TextIO | None = None) -> None:
    """Answer every message of `source` in `target`, until /quit or its end.

    What goes wrong with a message is said in a line and the conversation goes on. Ctrl-C ends a
    reply; between two it ends the conversation. Where `source` is no terminal, the messages are
    shown as well, so that the output is the whole conversation.

    Args:
        chat: The conversation.
        source: Messages; by default standard input.
        target: Where replies go; by default standard output.
    """
    source = sys.stdin if source is None else source
    target = sys.stdout if target is None else target
    is_terminal = source.isatty()
    if is_terminal:
        print("Say something; /help lists the commands.", file=target)
    while True:
        print("User: ", end="", file=target, flush=True)
        line = source.readline()
        if not is_terminal:
            print(line.rstrip("\n"), file=target)
        if not line or line.strip() == "/quit":
            return
        try:
            _answer(chat, line.strip(), target)
        except (ValueError, OSError) as error:
            print(f"({error})", file=target)


def _answer(chat: Chat, line: str, target: TextIO) -> None:
    """Do what a line says."""
    if not line:
        return
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if not command.startswith("/"):
        _show(chat.say(line), target)
    elif command == "/retry":
        _show(chat.retry(), target)
    elif command == "/undo":
        print(f"(took back: {chat.undo()})", file=target)
    elif command == "/reset":
        chat.reset()
        print("(forgot everything)", file=target)
    elif command in ("/save", "/load"):
        if not argument:
            raise ValueError(f"{command} needs a file: {command} FILE")
        chat.save(argument) if command == "/save" else chat.load(argument)
        print(f"({'wrote' if command == '/save' else 'went on from'} {argument})", file=target)
    elif command == "/help":
        print(_HELP, file=target)
    else:
        raise ValueError(f"unknown command {command}; /help lists them")


def _show(pieces: Iterable[str], target: TextIO) -> None:
    """Print a reply while it is written; Ctrl-C keeps what there is of it."""
    reply = iter(pieces)
    print("Assistant:", end="", file=target, flush=True)
    try:
        for text in reply:
            print(text, end="", file=target, flush=True)
    except KeyboardInterrupt:
        print(" (interrupted)", end="", file=target)
    print("\n", file=target)
