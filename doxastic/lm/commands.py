"""`doxastic lm`: what its commands are."""

from __future__ import annotations

from collections.abc import Sequence

from doxastic.cli import dispatch

HELP = """\
usage: doxastic lm COMMAND ...

The recurrent core as a language model: RWKV-7, on a CPU or a GPU.

commands:
  pretrain [PRESET]          train a model from its beginning on text
  finetune --model MODEL     go on training: all of it, LoRA, or a state alone
  evaluate MODEL --data TEXT perplexity and bits per byte
  generate MODEL             go on from a prompt, or from many at once
  chat MODEL                 talk to a model
  convert SOURCE DESTINATION between .pth, safetensors and the Hugging Face layout
  info MODEL                 what is in a file or folder

MODEL is a .pth, a .safetensors file, a folder of either layout, or a run of pretrain or finetune.

examples:
  doxastic lm pretrain tiny --data books/
  doxastic lm generate runs/tiny --prompt "Once"
  doxastic lm finetune --model rwkv7-g1.pth --data notes.jsonl --method lora
  doxastic lm convert rwkv7-g1.pth rwkv7-g1/

options:
  COMMAND --help    every option of a command, with its meaning and default
"""

_COMMANDS = {
    "pretrain": "doxastic.lm.training_commands:pretrain",
    "finetune": "doxastic.lm.training_commands:finetune",
    "evaluate": "doxastic.lm.evaluation:evaluate",
    "generate": "doxastic.lm.generation:generate",
    "chat": "doxastic.lm.generation:chat",
    "convert": "doxastic.lm.convert:convert",
    "info": "doxastic.lm.convert:info",
}


def lm(words: Sequence[str]) -> None:
    """Run `doxastic lm`."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    dispatch(_COMMANDS, "command of doxastic lm", words)
