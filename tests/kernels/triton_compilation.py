"""Compiles the WKV-7 kernels for a GPU that need not be there; run as a script.

    python triton_compilation.py sm_90 bf16 64 64 1

prints one line of JSON per kernel: name, bytes of shared memory and of
machine code, seconds of CPU time. TRITON_INTERPRET must
not be set.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from doxastic.kernels.triton import tuned, wkv7
from doxastic.kernels.triton.common import padded
from doxastic.kernels.triton.wkv7_backward import gradient_kernel, state_gradient_kernel
from doxastic.kernels.triton.wkv7_forward import forward_kernel, group_kernel

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
SINGLE = ("entry", "exit", "state", "summary")
SIZES = ("steps", "heads", "groups", "group_steps", "tokens")


def main(architecture: str, dtype: str, keys: int, values: int, queries: int) -> None:
    """Compile every kernel as `wkv7` and its backward would launch it, resets included."""
    x = torch.empty(1, 16, 1, keys, dtype=DTYPES[dtype], device="meta")
    r, v = x.new_empty(1, 16, 1, queries, keys), x.new_empty(1, 16, 1, values)
    products = wkv7.precision(r, x, v)
    layout = tuned.choose(architecture, padded(keys), padded(values), products)
    reset = torch.empty(1, 16, dtype=torch.bool, device="meta")
    plan = wkv7._plan(r, x, v, x, x, reset, layout, 1)
    forward, backward = plan.serial(layout.forward), plan.serial(layout.state_gradient)
    shared = {name: forward[name] for name in ("K", "V", "BLOCK_K", "BLOCK_V", *OPTIONS)}
    gradient = plan.shared | wkv7._options(layout.gradient, values) | {"SPAN": plan.span}
    launches = (
        (forward_kernel, forward | {"STORE": True, "SUMMARY": False}),
        (forward_kernel, forward | {"STORE": False, "SUMMARY": True}),
        (group_kernel, shared | {"REVERSE": False}),
        (state_gradient_kernel, backward | {"SUMMARY": False}),
        (state_gradient_kernel, backward | {"SUMMARY": True}),
        (gradient_kernel, gradient),
    )
    for kernel, constants in launches:
        compile_for(architecture, kernel, constants, dtype, "bf16" if products == "bf16" else "f32")


def compile_for(
    architecture: str, kernel: Any, constants: dict[str, Any], dtype: str, kept: str
) -> None:
    """Compile one kernel and print what it takes."""
    options = {name: constants[name] for name in OPTIONS}
    constants = {n: x for n, x in constants.items() if n not in OPTIONS}
    signature = {name: kind(name, dtype, kept) for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    start = sum(os.times()[:4])
    compiled = triton.compile(source, target=target, options=options)
    seconds = sum(os.times()[:4]) - start
    report = {"kernel": kernel.__name__, "shared": compiled.metadata.shared, "seconds": seconds}
    print(json.dumps(report | {"binary": len(compiled.kernel)}), flush=True)


def kind(name: str, dtype: str, kept: str) -> str:
    """Return the type of an argument as Triton writes it."""
    if name in SIZES:
        return "i32"
    names = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32"}
    if name in ("stored", "dstored"):
        return names[kept]
    return "*u8" if name == "reset" else "*fp32" if name in SINGLE else names[dtype]


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]))
