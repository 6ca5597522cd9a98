"""Our files, read by the rwkv package: the same logits and the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_cases import random_checkpoint, small_config
from rwkv_package import rwkv_outputs
from tolerances import OTHER_PROGRAM, OTHER_PROGRAM_HALF
from torch import Tensor

from doxastic.language.formats import load_model, write_checkpoint
from doxastic.language.model import LanguageModel
from doxastic.memory.state import CoreState

pytest.importorskip("rwkv", reason="compares with the rwkv package: pip install rwkv")

TOKENS = torch.randint(0, 37, (1, 70), generator=torch.Generator().manual_seed(5))
PIECES = [33, 1, 36]

CASES = {
    "heads of 16": small_config(16),
    "heads of 32": small_config(32),
    "heads of 64": small_config(64, width=128),
    "one layer": small_config(16, layers=1),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return files of ours and what the package makes of them, by case."""
    folder = tmp_path_factory.mktemp("rwkv")
    paths = {name: folder / f"{name}.pth" for name in (*CASES, "bfloat16", "RWKV-7a")}
    for name, config in CASES.items():
        write_checkpoint(random_checkpoint(config), paths[name])
    halves = random_checkpoint(small_config(32)).to(torch.bfloat16)
    write_checkpoint(halves, paths["bfloat16"])
    write_checkpoint(random_checkpoint(small_config(deep_embed="matrix")), paths["RWKV-7a"])
    jobs = [(paths[name], "fp32") for name in CASES] + [(paths["bfloat16"], "bf16")]
    tokens = TOKENS[0].tolist()
    results = rwkv_outputs(jobs, tokens, PIECES)
    results += rwkv_outputs([(paths["RWKV-7a"], "fp32")], tokens, PIECES, deep_embed=True)
    return {name: (paths[name], result) for name, result in zip(paths, results, strict=True)}


@pytest.fixture(scope="module", params=[*CASES, "RWKV-7a"])
def case(request, outputs) -> tuple[dict[str, Any], LanguageModel]:
    """Return what the package makes of a file, and the model that we load from it."""
    path, theirs = outputs[request.param]
    return theirs, load_model(path)


@torch.no_grad()
def in_pieces(model: LanguageModel, lengths: list[int]) -> tuple[Tensor, CoreState]:
    logits, state = [], model.initial_state(1)
    for piece in TOKENS.split(lengths, dim=1):
        out, state = model(piece, state)
        logits.append(out[0])
    return torch.cat(logits), state


def in_steps(model: LanguageModel) -> tuple[Tensor, CoreState]:
    logits, state = [], model.initial_state(1)
    for token in TOKENS[0]:
        out, state = model.step(token.view(1), state)
        logits.append(out)
    return torch.cat(logits), state


OURS = {
    "whole": lambda model: in_pieces(model, [TOKENS.shape[1]]),
    "pieces": lambda model: in_pieces(model, PIECES),
    "steps": in_steps,
}


@pytest.mark.parametrize("way", OURS)
def test_logits_and_states_are_those_of_the_rwkv_package(case, way) -> None:
    theirs, model = case
    logits, state = OURS[way](model)
    their_logits, their_state = theirs[way]
    assert their_logits.std() > 0.3
    assert (logits - their_logits).abs().max() < OTHER_PROGRAM
    for layer in range(model.config.layers):
        # The package's state of a head has rows of values and columns of keys, as ours.
        parts = ("time_shift", "wkv", "channel_shift")
        for name, expected in zip(parts, their_state[3 * layer :], strict=False):
            found = state[f"{layer}.{name}"][0]
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < OTHER_PROGRAM, f"{layer}.{name}"


def test_every_tensor_of_the_file_moves_the_logits(case) -> None:
    _, model = case
    with torch.no_grad():
        before = model(TOKENS)[0]
        for name, tensor in model.named_parameters():
            own = tensor.clone()
            tensor += 0.5 * torch.randn(tensor.shape)
            assert (model(TOKENS)[0] - before).abs().max() > 10 * OTHER_PROGRAM, name
            tensor.copy_(own)


def test_bfloat16_is_as_close_to_the_exact_logits_as_the_package(outputs) -> None:
    path, results = outputs["bfloat16"]
    theirs, _ = results["whole"]
    model = load_model(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ours, _ = in_pieces(model, [TOKENS.shape[1]])
    exact, _ = in_pieces(load_model(path, dtype=torch.float64), [TOKENS.shape[1]])
    their_error = (theirs - exact).norm()
    assert (ours - exact).norm() < OTHER_PROGRAM_HALF * their_error
    assert their_error < 0.05 * exact.norm()
