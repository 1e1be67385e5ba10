"""Vector instructions that numba does not find by itself, as LLVM operations: they compile for every processor.

A bfloat16 is the upper half of a float32; numba has no such type, so products in bfloat16 are looked at as int16.
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
"""Entries of the product tested at once, a bit each."""
CACHE_LINE = 64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
intrinsic: Any = _intrinsic
"""What it decorates is called without the first argument, which no type checker knows."""


@intrinsic
def _upper_half(typing: Any, bits: Any) -> Any:
    """The float32 whose upper half is an int16."""
    if bits != types.int16:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.shl(builder.zext(arguments[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int16), generate


def number(entry):
    """An entry of the product as a float: a bfloat16's bits widened, floats as they are."""
    raise AssertionError("for compiled code only")


@overload(number, inline="always")
def _number(entry):
    if entry == types.int16:
        return lambda entry: _upper_half(entry)
    return lambda entry: entry


@intrinsic
def lowest_bit(typing: Any, mask: Any) -> Any:
    """The place of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def fetch(typing: Any, array: Any, row: Any) -> Any:
    """Ask for a row of a contiguous array [n, d] to be brought into the nearest cache; nothing waits for it."""

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
            builder.call(hint, [builder.gep(start, [offset]), _I32(0), _I32(3), _I32(1)])  # to read, nearest, data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _vector(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:
    """LANES entries of a contiguous array from `start`."""
    element = context.get_value_type(kind.dtype)
    data = context.make_array(kind)(context, builder, array).data
    place = builder.bitcast(builder.gep(data, [start]), ir.VectorType(element, LANES).as_pointer())
    return builder.load(place, align=kind.dtype.bitwidth // 8)


def _splat(builder: Any, scalar: Any) -> Any:
    """LANES copies of a number."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _ordered(builder: Any, bits: Any) -> Any:
    """bfloat16 bits → int16 in the order of the numbers: the lower bits of negative numbers are flipped."""
    kind = bits.type
    size = kind.count
    sign = builder.ashr(bits, ir.Constant(kind, [15] * size))
    return builder.xor(bits, builder.and_(sign, ir.Constant(kind, [0x7FFF] * size)))


@intrinsic
def above(typing: Any, entries: Any, start: Any, bound: Any) -> Any:
    """uint64: bit q says that entries[start + q] > bound. Floats, or int16 (bfloat16) with a bound by `coarse`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = _vector(context, builder, entries, arguments[0], arguments[1])
        if entries.dtype == types.int16:
            hits = builder.icmp_signed(">", _ordered(builder, vector), _splat(builder, arguments[2]))
        else:
            hits = builder.fcmp_ordered(">", vector, _splat(builder, arguments[2]))
        return builder.bitcast(hits, _I64)

    return types.uint64(entries, types.int64, entries.dtype), generate


@intrinsic
def reaching(typing: Any, entries: Any, start: Any, lost: Any, shift: Any, slope: Any, row: Any, floor: Any) -> Any:
    """uint64: bit q says that p + lost·|p| + shift + slope·row[i] ≥ floor[i], p = entries[i], i = start + q.

    row, floor: float arrays.
    """
    real = row.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, share, add, times, rows, floors = arguments
        vector = _vector(context, builder, entries, array, at)
        if entries.dtype == types.int16:
            wide = ir.VectorType(_I32, LANES)
            bits = builder.shl(builder.zext(vector, wide), ir.Constant(wide, [16] * LANES))
            vector = builder.bitcast(bits, ir.VectorType(ir.FloatType(), LANES))
        is_negative = builder.fcmp_ordered("<", vector, ir.Constant(vector.type, [0.0] * LANES))
        size = builder.select(is_negative, builder.fneg(vector), vector)
        vector = builder.fadd(vector, builder.fmul(_splat(builder, share), size))
        margin = builder.fmul(_splat(builder, times), _vector(context, builder, row, rows, at))
        upper = builder.fadd(builder.fadd(vector, _splat(builder, add)), margin)
        hits = builder.fcmp_ordered(">=", upper, _vector(context, builder, floor, floors, at))
        return builder.bitcast(hits, _I64)

    return types.uint64(entries, types.int64, real, real, real, row, floor), generate


def coarse(bounds: np.ndarray, product: np.dtype) -> np.ndarray:
    """Bounds for `above`, in the product's type, no higher than `bounds`: for int16, ordered bfloat16 bits."""
    if product != np.int16:
        return bounds
    bits = (bounds.view(np.int32) >> 16).astype(np.int32)
    ordered = np.where(bits < 0, bits ^ 0x7FFF, bits)
    return np.maximum(ordered - 2, -(2**15)).astype(np.int16)  # one for the cut-off bits, one for −0
