"""SIMD operations that numba does not generate by itself, as LLVM instructions, which compile for every processor.

A bfloat16 is the upper half of a float32. numba has no such type, so products in bfloat16 are viewed as int16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.extending import overload

LANES = 64
"""Entries of the product compared at once; the results are the bits of a uint64."""
CACHE_LINE = 64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
intrinsic: Any = _intrinsic
"""Decorated functions are called without their first argument, which type checkers do not know."""


@intrinsic
def _widen_bf16(typing: Any, bits: Any) -> Any:
    """Return the float32 whose upper half is the int16 `bits`."""
    if bits != types.int16:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.shl(builder.zext(arguments[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int16), generate


def to_float(entry):
    """Return an entry of the product as a float: bfloat16 bits (int16) are widened, floats are unchanged."""
    raise AssertionError("for compiled code only")


@overload(to_float, inline="always")
def _to_float(entry):
    if entry == types.int16:
        return lambda entry: _widen_bf16(entry)
    return lambda entry: entry


@intrinsic
def lowest_bit(typing: Any, mask: Any) -> Any:
    """Return the index of the lowest set bit of a non-zero uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def prefetch_row(typing: Any, array: Any, row: Any) -> Any:
    """Prefetch a row of a contiguous array [n, d] into the L1 cache, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        made = context.make_array(kind)(context, builder, arguments[0])
        byte, size = ir.IntType(8).as_pointer(), kind.dtype.bitwidth // 8
        width = builder.extract_value(made.shape, 1)
        start = builder.gep(made.data, [builder.mul(arguments[1], width)])
        start, length = builder.bitcast(start, byte), builder.mul(width, ir.Constant(_I64, size))
        shape = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)
        with cgutils.for_range_slice(builder, _I64(0), length, _I64(CACHE_LINE)) as (offset, _):
            builder.call(hint, [builder.gep(start, [offset]), _I32(0), _I32(3), _I32(1)])  # read, L1, data cache
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _load_vector(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:
    """Load LANES entries of a contiguous array from `start`."""
    element = context.get_value_type(kind.dtype)
    data = context.make_array(kind)(context, builder, array).data
    place = builder.bitcast(builder.gep(data, [start]), ir.VectorType(element, LANES).as_pointer())
    return builder.load(place, align=kind.dtype.bitwidth // 8)


def _splat(builder: Any, scalar: Any) -> Any:
    """Return a vector of LANES copies of a scalar."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _ordered_bits(builder: Any, bits: Any) -> Any:
    """Map bfloat16 bits to int16 with the same order: the lower 15 bits of negative numbers are flipped."""
    kind = bits.type
    size = kind.count
    sign = builder.ashr(bits, ir.Constant(kind, [15] * size))
    return builder.xor(bits, builder.and_(sign, ir.Constant(kind, [0x7FFF] * size)))


@intrinsic
def greater_mask(typing: Any, entries: Any, start: Any, bound: Any) -> Any:
    """Return a uint64 whose bit q is entries[start + q] > bound.

    entries: floats, or int16 (bfloat16 bits) with a bound from `round_bounds_down`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = _load_vector(context, builder, entries, arguments[0], arguments[1])
        if entries.dtype == types.int16:
            hits = builder.icmp_signed(">", _ordered_bits(builder, vector), _splat(builder, arguments[2]))
        else:
            hits = builder.fcmp_ordered(">", vector, _splat(builder, arguments[2]))
        return builder.bitcast(hits, _I64)

    return types.uint64(entries, types.int64, entries.dtype), generate


@intrinsic
def upper_bound_mask(
    typing: Any, entries: Any, start: Any, rounding: Any, shift: Any, slope: Any, norm: Any, minimum: Any
) -> Any:
    """Return a uint64 whose bit q is p + rounding·|p| + shift + slope·norm[i] ≥ minimum[i].

    i = start + q, p = entries[i].

    norm, minimum: float arrays.
    """
    real = norm.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, rounding_, shift_, slope_, norms, minimums = arguments
        vector = _load_vector(context, builder, entries, array, at)
        if entries.dtype == types.int16:
            wide = ir.VectorType(_I32, LANES)
            bits = builder.shl(builder.zext(vector, wide), ir.Constant(wide, [16] * LANES))
            vector = builder.bitcast(bits, ir.VectorType(ir.FloatType(), LANES))
        is_negative = builder.fcmp_ordered("<", vector, ir.Constant(vector.type, [0.0] * LANES))
        size = builder.select(is_negative, builder.fneg(vector), vector)
        vector = builder.fadd(vector, builder.fmul(_splat(builder, rounding_), size))
        margin = builder.fmul(_splat(builder, slope_), _load_vector(context, builder, norm, norms, at))
        upper = builder.fadd(builder.fadd(vector, _splat(builder, shift_)), margin)
        hits = builder.fcmp_ordered(">=", upper, _load_vector(context, builder, minimum, minimums, at))
        return builder.bitcast(hits, _I64)

    return types.uint64(entries, types.int64, real, real, real, norm, minimum), generate


def round_bounds_down(bounds: np.ndarray, product: np.dtype) -> np.ndarray:
    """Round `bounds` down to the dtype that `greater_mask` compares in, so that no result exceeds its bound.

    For bfloat16 products the result is int16, whose integer order is the order of the bfloat16 values.
    """
    if product != np.int16:
        return bounds
    bits = (bounds.view(np.int32) >> 16).astype(np.int32)
    ordered = np.where(bits < 0, bits ^ 0x7FFF, bits)
    return np.maximum(ordered - 2, -(2**15)).astype(np.int16)  # 1 for the truncated bits, 1 for −0
