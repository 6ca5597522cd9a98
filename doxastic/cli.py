"""The command line: `doxastic train | evaluate | plot | calibrate | study | export | envs | lm`.

The modules that need torch are imported by the command that needs them, so that `--help` and a
misspelt command answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from doxastic.allocation import keep_freed_memory
from doxastic.configuration import ConfigError, preset_names

HELP = """\
usage: doxastic COMMAND ...

Train agents that remember with a recurrent RWKV-7 core and act on an explicit belief,
and see how they hold up under noise they never saw.

commands:
  train [PRESET] [--resume RUN]   train an agent, evaluate it and draw the figures
  evaluate RUN                    test a trained agent at chosen noise levels
  plot RUN [RUN ...]              draw the noise sweep and the learning curve of runs
  calibrate RUN ...               is its belief a belief? probes, coverage, what control uses
  study PRESET                    compare memories over seeds and noise, with intervals
  export RUN                      write an agent's step as a file for control loops
  envs                            list the tasks: what they ask, spaces, noise, best return
  envs show ID [--agent RUN]      play an episode and draw it: state, observation, posterior
  lm COMMAND                      the core as a language model: pretrain, finetune, generate, ...

examples:
  doxastic train                                      the preset noisy-cartpole
  doxastic train noisy-cartpole --seed 1 --memory.kind gru
  doxastic train --env.id CartPole-v1 --total-steps 100000
  doxastic train --resume runs/noisy-cartpole         continue where it stopped
  doxastic evaluate runs/noisy-cartpole --noise 0 0.1 0.2 0.4
  doxastic plot runs/noisy-cartpole runs/noisy-cartpole-2
  doxastic export runs/noisy-cartpole --format onnx
  doxastic envs show Tiger --noise 0.2                an episode as a GIF
  doxastic study quick                                three memories, one task, three seeds
  doxastic lm pretrain tiny --data notes.txt          a language model of bytes in minutes

presets: {presets}

options:
  COMMAND --help    every option of a command, with its meaning and default
  --debug           show the whole traceback of an error
  --version         show the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: The words after the program's name; by default those of this process.
    """
    if arguments is None:
        keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except KeyboardInterrupt as interrupted:
        return _interrupted(interrupted)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has gone: nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"doxastic: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(presets=", ".join(preset_names())), end="")
        return 0
    if words[0] == "--version":
        from doxastic import __version__

        print(f"doxastic {__version__}")
        return 0
    dispatch(_COMMANDS, "command", words)
    return 0


def dispatch(commands: Mapping[str, str], what: str, words: Sequence[str]) -> None:
    """Call the function that the first word names with the others.

    Args:
        commands: Command -> function, as module:name; imported when it is called.
        what: What the first word is, for the error.
        words: The words of the command line.
    """
    command, rest = words[0], list(words[1:])
    if command not in commands:
        match = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean {match[0]}?" if match else f"commands are {', '.join(commands)}"
        raise ConfigError(f"unknown {what} {command!r}; {hint}")
    module, name = commands[command].split(":")
    getattr(importlib.import_module(module), name)(rest)


_COMMANDS = {
    "train": "doxastic.commands:train",
    "evaluate": "doxastic.commands:evaluate",
    "plot": "doxastic.commands:plot",
    "export": "doxastic.commands:export",
    "calibrate": "doxastic.calibration_command:calibrate",
    "study": "doxastic.studies.command:study",
    "envs": "doxastic.envs_command:envs",
    "lm": "doxastic.lm.commands:lm",
}
"""Command -> the function that takes its words, as module:name."""

# Errors whose message is written for the user; any other is a defect of this program.
_EXPLAINED = (ValueError, OSError, ImportError, RuntimeError, MemoryError)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, _EXPLAINED):
        return message
    return f"{type(error).__name__}: {message} (unexpected; run again with --debug and report it)"


def _interrupted(interrupted: KeyboardInterrupt) -> int:
    """Say where the run stands and return 128 plus the signal's number."""
    message = str(interrupted) or "interrupted"
    print(f"doxastic: {message}", file=sys.stderr)
    return 128 + int(getattr(interrupted, "signal_number", 2))
