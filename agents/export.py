"""An agent's step as one file: ONNX, or an archive of torch.export.

Both hold plain tensor operations with a free batch size and every weight, and need nothing of this
package where they run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

import doxastic.kernels.operators  # noqa: F401  registers the operators that are replaced below
from doxastic.agents.agent import Agent
from doxastic.agents.step_network import Port, StepNetwork
from doxastic.kernels import reference

ExportFormat = Literal["onnx", "torch"]

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
"""The ending of a file of each format."""


def export_agent(agent: Agent, format: ExportFormat = "onnx") -> tuple[bytes, dict[str, Any]]:
    """Return the content of the file, and a JSON-able description of its inputs and outputs.

    See `StepNetwork` for what the step takes and gives. ONNX Runtime and torch give the agent's
    numbers, to rounding.

    Args:
        agent: The agent, on any device; the file computes wherever its runtime does.
        format: `onnx`, or `torch` for an archive that `torch.export.load` reads.

    Raises:
        ImportError: If the packages that write ONNX are missing.
        ValueError: If the format is another.
        RuntimeError: If the agent holds an operation that cannot be exported.
    """
    writers: dict[str, Callable[[StepNetwork], bytes]] = {"onnx": _to_onnx, "torch": _to_torch}
    if format not in writers:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(writers)}.")
    if format == "onnx":
        _require_onnx()
    device = agent.device
    try:
        agent.policy.cpu()
        if agent.normalizer is not None:
            agent.normalizer.cpu()
        step = StepNetwork(agent)
        with _quiet_exporters(), torch.no_grad():
            content = writers[format](step)
    finally:
        agent.policy.to(device)
        if agent.normalizer is not None:
            agent.normalizer.to(device)
    return content, _describe(step, format)


def _describe(step: StepNetwork, format: ExportFormat) -> dict[str, Any]:
    head, memory = step.policy.action_head, step.policy.memory
    return {
        "format": format,
        "inputs": [_port_to_json(port) for port in step.inputs],
        "outputs": [_port_to_json(port) for port in step.outputs],
        "distribution": {
            "kind": head.distribution_class.__name__,
            "parameters": list(head.in_keys),
        },
        "memory": {"kind": type(memory).__name__, "state_size": memory.state_size},
    }


def _port_to_json(port: Port) -> dict[str, Any]:
    dtype = str(port.dtype).removeprefix("torch.")
    return {"name": port.name, "shape": ["batch", *port.shape], "dtype": dtype}


def _exported(step: StepNetwork) -> torch.export.ExportedProgram:
    """Return the step as a graph of PyTorch's own operations."""
    batch = torch.export.Dim("batch", min=1)
    # Two rows: a batch of one would be taken for a constant.
    inputs = step.example(2)
    shapes = (tuple({0: batch} for _ in inputs),)
    try:
        program = torch.export.export(step, inputs, dynamic_shapes=shapes)
        program = program.run_decompositions(_decompositions())
    except Exception as error:
        raise RuntimeError(
            f"the step of this agent, with a {type(step.policy.memory).__name__}, cannot be "
            f"exported: {error}. A memory of your own must take one step without branches on "
            "values, in operations of PyTorch."
        ) from error
    foreign = {str(node.target) for node in program.graph.nodes if "doxastic" in str(node.target)}
    if foreign:
        raise RuntimeError(
            f"the exported step holds {', '.join(sorted(foreign))}, which only this package has; "
            "give each a decomposition in doxastic.agents.export."
        )
    for node in program.graph.nodes:
        # Paths on this machine, which are nobody's business and half of the file.
        node.meta.pop("stack_trace", None)
    return program


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what stands for the compiled kernels: the reference, one step of it."""

    def wkv7_forward(*arguments: Tensor) -> tuple[Tensor, ...]:
        y, state = reference.wkv7(*arguments)
        # What the kernel keeps for its gradient; read by nobody here.
        return y, state, y, state

    return {
        torch.ops.doxastic.wkv7_forward.default: wkv7_forward,
        torch.ops.doxastic.moments_forward.default: reference.weighted_moments,
    }


def _to_torch(step: StepNetwork) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_exported(step), buffer)
    return buffer.getvalue()


def _to_onnx(step: StepNetwork) -> bytes:
    program = torch.onnx.export(
        _exported(step),
        input_names=[port.name for port in step.inputs],
        output_names=[port.name for port in step.outputs],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = (model := program.model_proto).graph
    for described in (graph, *graph.node):
        described.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        # The exporter numbers its symbols.
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    content: bytes = model.SerializeToString()
    return content


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs the package {error.name}. Install what it takes with "
            "`pip install 'doxastic[export]'`, or export with format='torch'."
        ) from error


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Keep PyTorch's exporters from telling about their own internals."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
