"""Checkpoint folders: tensors in safetensors, the rest in a JSON manifest; nothing is a pickle.

A checkpoint is written into a temporary folder, flushed to the disk and renamed, so that a
folder named `step-<n>` is always whole. The manifest carries sizes and checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor

from doxastic.disk import sync_folder, write_durably

if TYPE_CHECKING:
    import gymnasium as gym

FORMAT = 1
"""Version of the layout of a checkpoint folder; another version is refused."""

_PACKAGES = ("doxastic", "torch", "torchrl", "tensordict", "gymnasium", "numpy", "numba")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to continue, and less than that to act."""

    step: int
    """Environment steps taken; of a language model, updates."""
    update: int
    """Updates made."""
    observation_space: gym.Space[Any] | None = None
    """Space of one environment's observations; a language model has none."""
    action_space: gym.Space[Any] | None = None
    """Space of one environment's actions; a language model has none."""
    weights: Mapping[str, Tensor]
    """The agent: parameters and observation statistics. Or the language model's parameters."""
    trainer: Mapping[str, Tensor]
    """Optimiser, random generators, environment and collector state; empty when not read."""
    data: Mapping[str, Any]
    """The part of the trainer's state that JSON holds."""

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """The agent's spaces, of observations and of actions.

        Raises:
            CheckpointError: If it is no agent's.
        """
        if self.observation_space is None or self.action_space is None:
            raise CheckpointError(
                f"the checkpoint of step {self.step} is a language model's; expected an agent's. "
                "Language models have their own commands: doxastic lm"
            )
        return self.observation_space, self.action_space


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint so that `folder` is either absent or whole.

    Raises:
        OSError: If the disk refuses; the temporary folder is removed then.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files = {
            name: _write_tensors(temporary / name, tensors)
            for name, tensors in (
                ("weights.safetensors", checkpoint.weights),
                ("trainer.safetensors", checkpoint.trainer),
            )
        }
        manifest = json.dumps(_manifest(checkpoint, files), indent=1)
        write_durably(temporary / "manifest.json", manifest.encode())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_checkpoint(folder: Path, *, with_trainer: bool = True) -> Checkpoint:
    """Return the checkpoint in `folder` after checking its version, sizes and checksums.

    Args:
        folder: A folder `step-<n>`.
        with_trainer: Whether to read what only training needs.

    Raises:
        CheckpointError: If a file is missing, cut short or altered, or the format is another.
    """
    manifest = _read_manifest(folder)
    weights = _read_tensors(folder, "weights.safetensors", manifest)
    trainer = _read_tensors(folder, "trainer.safetensors", manifest) if with_trainer else {}
    return Checkpoint(
        step=manifest["step"],
        update=manifest["update"],
        observation_space=_space(manifest["observation_space"]),
        action_space=_space(manifest["action_space"]),
        weights=weights,
        trainer=trainer,
        data=manifest["trainer"],
    )


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a run's numbers."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file and return its size and checksum; only one file's bytes are held at a time."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(plain)
    write_durably(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _manifest(checkpoint: Checkpoint, files: Mapping[str, Any]) -> dict[str, Any]:
    spaces = {"observation": checkpoint.observation_space, "action": checkpoint.action_space}
    return {
        "format": FORMAT,
        "step": checkpoint.step,
        "update": checkpoint.update,
        "versions": package_versions(),
        **{f"{name}_space": _space_to_json(space) for name, space in spaces.items()},
        "files": files,
        "trainer": checkpoint.data,
    }


def _space_to_json(space: gym.Space[Any] | None) -> Any:
    if space is None:
        return None
    # Imported here: a language model needs no Gymnasium.
    from doxastic.spaces import space_to_json

    return space_to_json(space)


def _space(data: Any) -> gym.Space[Any] | None:
    if data is None:
        return None
    from doxastic.spaces import space_from_json

    return space_from_json(data)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no manifest.json") from error
    except ValueError as error:
        raise _damaged(path, "it is not valid JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        writer = manifest.get("versions", {}).get("doxastic") if found is not None else None
        raise CheckpointError(
            f"{folder} has checkpoint format {found}; this doxastic "
            f"({package_versions()['doxastic']}) reads format {FORMAT}. "
            f"Use the doxastic that wrote it ({writer or 'unknown version'}), or train again."
        )
    return manifest


def _read_tensors(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / name
    expected = manifest["files"][name]
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "the file is missing") from error
    if len(content) != expected["bytes"]:
        raise _damaged(path, f"it has {len(content)} bytes of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise _damaged(path, "its checksum is not the one in manifest.json")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error
    return tensors


def _damaged(path: Path, reason: str) -> CheckpointError:
    others = sorted(
        other.name for other in path.parent.parent.glob("step-*") if other != path.parent
    )
    remedy = f"use another one: {', '.join(others)}" if others else "train again"
    return CheckpointError(f"the checkpoint file {path} is damaged: {reason}; {remedy}")
