"""What the rwkv package computes, in a process of its own: it reads its options on import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def rwkv_outputs(
    jobs: Sequence[tuple[Path, str]], tokens: list[int], pieces: list[int], *,
    deep_embed: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the package's logits `[T, V]` for a whole sequence, by token and in pieces.

    Each of "whole", "steps" and "pieces" is a pair of the logits and the last state, a list of
    three tensors a layer.

    Args:
        jobs: Files *.pth and the dtype to run each in: fp32 or bf16.
        tokens: The sequence.
        pieces: Lengths of the pieces; their sum is that of the sequence.
        deep_embed: Whether the models are RWKV-7a.
    """
    result = jobs[0][0].with_suffix(".outputs")
    options = {
        "RWKV_V7_ON": "1",
        "RWKV_JIT_ON": "0",
        "RWKV_CUDA_ON": "0",
        "RWKV_DE_VERSION": str(int(deep_embed)),
    }
    names = [(str(path.with_suffix("")), dtype) for path, dtype in jobs]
    run = subprocess.run(
        [sys.executable, __file__, json.dumps([names, tokens, pieces, str(result)])],
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stderr
    outputs: list[dict[str, Any]] = torch.load(result, weights_only=True)
    return outputs


def _main(words: str) -> None:
    from rwkv.model import RWKV

    torch.set_num_threads(1)
    jobs, tokens, lengths, result = json.loads(words)

    def run(model: Any, pieces: Sequence[list[int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits, state = [], None
        for piece in pieces:
            out, state = model.forward(piece, state, full_output=True)
            logits.append(out.view(len(piece), -1))
        return torch.cat(logits), state

    ways = {
        "whole": [tokens],
        "steps": [[token] for token in tokens],
        "pieces": [piece.tolist() for piece in torch.tensor(tokens).split(lengths)],
    }
    outputs = []
    for path, dtype in jobs:
        model = RWKV(model=path, strategy=f"cpu {dtype}")
        outputs.append({way: run(model, pieces) for way, pieces in ways.items()})
    torch.save(outputs, result)


if __name__ == "__main__":
    _main(sys.argv[1])
