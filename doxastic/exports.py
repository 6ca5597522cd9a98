"""The agent of a run as a file for control loops, with its description beside it."""

from __future__ import annotations

import json
from pathlib import Path

from doxastic import __version__
from doxastic.agents.export import SUFFIXES, ExportFormat, export_agent
from doxastic.disk import disk_errors, write_atomically
from doxastic.runs import RunFolder
from doxastic.spaces import space_to_json
from doxastic.training import load


def export(
    run: str | Path,
    format: ExportFormat = "onnx",
    *,
    output: str | Path | None = None,
    which: str = "best",
) -> Path:
    """Write one step of a trained agent as a file and return its path.

    The file is a pure function of observation, state and episode start, for any batch size; see
    `doxastic.agents.step_network.StepNetwork`. Beside it, `<file>.json` describes inputs, outputs
    and spaces.

    Args:
        run: A run folder.
        format: `onnx`, or `torch` for an archive that `torch.export.load` reads.
        output: The file; by default `policy.onnx` or `policy.pt2` in the run folder.
        which: `best`, `last` or the name of a checkpoint, `step-<n>`.

    Raises:
        RunError: If there is no run, or the file cannot be written.
        ImportError: If the packages that write ONNX are missing.
    """
    folder, agent = RunFolder(run), load(run, which)
    content, description = export_agent(agent, format)
    path = folder.path / f"policy{SUFFIXES[format]}" if output is None else Path(output)
    description |= {
        "file": path.name,
        "run": folder.path.resolve().name,
        "checkpoint": which,
        "doxastic": __version__,
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
    }
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        text = json.dumps(description, indent=2) + "\n"
        write_atomically(path.with_name(f"{path.name}.json"), text.encode())
    return path
