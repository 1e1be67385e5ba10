"""Compile every Triton kernel that a step launches for a Hopper GPU, on a machine that has none.

    python -m tests.gpu.compile_kernels 2304 jumprelu topk    prints registers, stack and shared memory of each kernel
    python -m tests.gpu.compile_kernels 2304 --float64        exits with 1 if a kernel does not compile

Every launch is replaced by a compilation for its arguments; the kernels are not executed. Needs triton, and
TRITON_INTERPRET unset.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import types
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from jumpahead.engine import dense_features, train_step
from jumpahead.engine.kernels.triton import TritonKernels, screen, sparse_ops
from tests.engine.cases import CASES, activations, untrained_state

TARGET = GPUTarget("cuda", 90, 32)
NAMES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.int16: "i16", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
TOKENS, WIDTH = 1024, 48


class CompilationLog:
    """The compiled and the failed kernels, by kernel and arguments."""

    def __init__(self) -> None:
        self.found: dict[Any, dict[str, int]] = {}
        self.failed: dict[Any, str] = {}

    def launch(self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Compile instead of launching; replaces `JITFunction.run`."""
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        given = kernel.signature.bind(*args, **kwargs).arguments
        constant = {p.name for p in kernel.params if p.is_constexpr}
        signature, values, attributes = {}, {}, {}
        for number, (name, value) in enumerate(given.items()):
            kind = "constexpr" if name in constant or value is None else kind_of(value)
            if kind == "i32" and value == 1 and not kernel.params[number].do_not_specialize:
                kind = "constexpr"
            signature[name] = kind
            if isinstance(value, tuple):
                attributes |= {(number, i): [["tt.divisibility", 16]] for i in range(len(value))}
            elif kind == "constexpr":
                values[(number,)] = value
            elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(number,)] = [["tt.divisibility", 16]]
        key = (kernel.fn.__name__, tuple(signature.items()), tuple(values.items()), tuple(options.items()))
        if key in self.found or key in self.failed:
            return
        try:
            made = triton.compile(ASTSource(kernel, signature, values, attributes), target=TARGET, options=options)
            self.found[key] = {"warps": options.get("num_warps", 4), "shared": made.metadata.shared} | resource_usage(
                made
            )
        except Exception as error:  # noqa: BLE001 — compilers raise anything
            self.failed[key] = f"{type(error).__name__}: {error}"


def kind_of(value: Any) -> Any:
    """Return an argument's type in a kernel's signature."""
    if isinstance(value, tuple):
        return tuple(map(kind_of, value))
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def resource_usage(made: Any) -> dict[str, int]:
    """Return registers per thread and bytes of stack; a stack means that registers are spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = dict(re.findall(r"(REG|STACK):(\d+)", said))
    return {"registers": int(pairs["REG"]), "stack": int(pairs["STACK"])}


def kernels_of(module: types.ModuleType) -> list[JITFunction]:
    return [one for one in vars(module).values() if isinstance(one, JITFunction)]


def run(d: int, architectures: list[str], dtype: torch.dtype) -> CompilationLog:
    """Compile what steps of these architectures launch at dimension d, on the sparse and on the dense path."""
    compiled = CompilationLog()
    for kernel in kernels_of(screen) + kernels_of(sparse_ops):
        kernel.run = types.MethodType(compiled.launch, kernel)  # type: ignore[method-assign]
    for case in CASES:
        if architectures and case.architecture not in architectures:
            continue
        for popular in (1.0, -1.0):
            dense_features.DENSE_SHARE, dense_features.MIN_DENSE_FEATURES = popular, 1
            state = untrained_state(case, d, WIDTH, dtype, dead_after_tokens=10**9)
            layer = TritonKernels("cpu", is_async=True)
            x = activations(TOKENS, d, 1, dtype)
            # The results are meaningless, because no kernel is executed: one step is enough.
            train_step(state, x, 0.01, 1.0, layer)
    return compiled


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("d", type=int)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--float64", action="store_true")
    options = parser.parse_args(arguments)
    compiled = run(options.d, options.architectures, torch.float64 if options.float64 else torch.float32)
    for key, found in compiled.found.items():
        print(f"{key[0]:16} d={options.d}", " ".join(f"{name}={value}" for name, value in found.items()))
    for key, error in compiled.failed.items():
        print(f"{key[0]} failed: {error}\n    {dict(key[1])}", file=sys.stderr)
    print(f"compiled {len(compiled.found)} for sm_90, failed {len(compiled.failed)}")
    return 1 if compiled.failed else 0


if __name__ == "__main__":
    sys.exit(main())
