"""Triton kernels of steps 3 and 5 over the support: token by token (decode) and feature by feature (row updates).

A feature with few entries is processed by one program: projections, gradient rows, decoder norm, lazy Adam. A feature
with more than PIECE entries is cut into pieces, whose sums a second kernel adds in order. No floating-point number is
added atomically: the order of every sum follows from the entries alone.

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `supports.Support`. A program holds whole rows, BLOCK ≥ d columns (`decode`: BLOCK columns of ENTRIES rows).
Offsets are 64-bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import triton  # pyright: ignore[reportMissingImports] — not installed with jumpahead: it comes with torch on a GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]

jit = cast("Callable[..., Any]", triton.jit)  # pyright: ignore[reportAttributeAccessIssue]
"""Type checkers do not know the launch syntax of jitted functions."""


@jit
def _round_to_bf16(value):
    """Round float32 values to bfloat16, to nearest, ties to even; return (bits as int16, values)."""
    bits = value.to(tl.uint32, bitcast=True)
    half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return half.to(tl.uint16).to(tl.int16, bitcast=True), (half << 16).to(tl.float32, bitcast=True)


@jit
def _store_bf16(value, offset, inside, bf16, rounding_norm, BF16_BYTES: tl.constexpr):
    """Store the row `value` in bfloat16, BF16_BYTES bytes per thread at a time, and ‖value − bf16‖.

    Eight bytes are four numbers, the layout of a float32 row. Sixteen would need a conversion through shared memory.
    """
    bits, rounded = _round_to_bf16(value)
    tl.store(tl.multiple_of(bf16 + offset, BF16_BYTES), bits, mask=inside)
    error = tl.where(inside, value - rounded, 0.0)
    tl.store(rounding_norm, tl.sqrt(tl.sum(error * error, 0)))


@jit
def subtract_bias(x, bias, out, norms, bf16, rounding_norms, d, BF16_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Set out = x − bias, the norm of each row, and its bfloat16 copy. One program per row."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    offset = i * d + c
    value = tl.load(x + offset, mask=inside, other=0.0) - tl.load(bias + c, mask=inside, other=0.0)
    tl.store(out + offset, value, mask=inside)
    tl.store(norms + i, tl.sqrt(tl.sum(value * value, 0)))
    if BF16_BYTES:
        _store_bf16(value, offset, inside, bf16, rounding_norms + i, BF16_BYTES)


@jit
def round_rows_to_bf16(w, norms, bf16, rounding_norms, d, BF16_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Set the norm of each row of w and its bfloat16 copy. One program per row."""
    j = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    value = tl.load(w + j * d + c, mask=inside, other=0.0)
    tl.store(norms + j, tl.sqrt(tl.sum(value * value, 0)))
    if BF16_BYTES:
        _store_bf16(value, j * d + c, inside, bf16, rounding_norms + j, BF16_BYTES)


@jit
def decode(indptr, order, feature, values, w_dec, bias, target, out, squares, d,
           SIGN: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Set out[i] = Σ value·d_j + bias − sign·target_i over token i's entries, and squares[i, block] = ‖out[i, block]‖².

    One program per token and block of columns. Entries with value 0 are skipped.
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < d
    start = tl.load(indptr + i)
    n = (tl.load(indptr + i + 1) - start).to(tl.int32)
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    for s in range(0, n, ENTRIES):
        position = s + tl.arange(0, ENTRIES)
        valid = position < n
        q = tl.load(order + start + position, mask=valid, other=0).to(tl.int64)
        value = tl.load(values + q, mask=valid, other=0.0)
        j = tl.load(feature + q, mask=valid, other=0).to(tl.int64)
        used = valid & (value != 0)
        rows = tl.load(w_dec + j[:, None] * d + c[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(value[:, None] * rows, 0)
    goal = tl.load(target + i * d + c, mask=inside, other=0.0)
    total = total + (tl.load(bias + c, mask=inside, other=0.0) - SIGN * goal)
    tl.store(out + i * d + c, total, mask=inside)
    exact = tl.where(inside, total, 0.0).to(tl.float64)
    tl.store(squares + i * tl.num_programs(1) + tl.program_id(1), tl.sum(exact * exact, 0))


@jit
def sum_segments(starts, vector, out, segments, SEGMENTS: tl.constexpr, TILE: tl.constexpr):
    """Set out[j] = Σ vector over entries starts[j] … starts[j + 1] − 1, in float64. SEGMENTS segments per program."""
    j = tl.program_id(0).to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    inside = j < segments
    start = tl.load(starts + j, mask=inside, other=0)
    stop = tl.load(starts + j + 1, mask=inside, other=0)
    longest = tl.max((stop - start).to(tl.int32), 0)
    total = tl.zeros([SEGMENTS], tl.float64)
    for s in range(0, longest, TILE):  # pyright: ignore[reportArgumentType]
        position = start[:, None] + (s + tl.arange(0, TILE))[None, :]
        total += tl.sum(tl.load(vector + position, mask=position < stop[:, None], other=0.0).to(tl.float64), 1)
    tl.store(out + j, total.to(out.dtype.element_ty), mask=inside)


@jit
def _add_reconstruction(position, offset, c, row, slopes, values, residual, scale, projections, d_pre, g_dec, touched,
                        d, LIVE: tl.constexpr, MAY_SKIP: tl.constexpr):  # fmt: skip
    """Compute one reconstruction's projection at an entry; return (d_pre, g_dec, touched) with its part added."""
    slope = tl.load(slopes + position)
    weight = slope * 0.0
    if LIVE:
        weight = tl.load(values + position) * scale
        touched = touched | (weight != 0)
    length = d
    if MAY_SKIP:
        length = d * ((slope != 0) | (weight != 0)).to(tl.int32)
    error = tl.load(residual + offset, mask=c < length, other=0.0)
    projection = scale * tl.sum(error * row, 0)
    tl.store(projections + position, projection)
    if LIVE:
        g_dec += weight * error
    return d_pre + slope * projection, g_dec, touched


@jit
def _gradient_rows(start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
                   PARTS: tl.constexpr, LIVE: tl.constexpr, MAY_SKIP: tl.constexpr, CONSTANT: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """Return (gradient row of w_j, of d_j, Σ ∂L/∂π, `has_gradients`) of n entries of one feature.

    Bit 0 of `has_gradients`: w_j has a gradient; bit 1: d_j has one.

    The entries start at `start`; row = d_j. There are slopes, values, residuals and projections of each of PARTS
    reconstructions; the first LIVE are live; bit r of MAY_SKIP is `may_skip` of reconstruction r. Entries are processed
    one after the other, all of them as rows: another order of the same sums would go through shared memory.
    """
    kind: tl.constexpr = x.dtype.element_ty
    g_enc = tl.zeros([BLOCK], kind)
    g_dec = tl.zeros([BLOCK], kind)
    total = tl.load(scales).to(tl.float64) * 0.0
    has_gradients = n * 0
    for s in range(n):
        position = start + s
        offset = tl.load(token + position).to(tl.int64) * d + c
        d_pre = tl.load(scales) * 0.0
        if CONSTANT:
            d_pre = tl.load(constant + position)
        has_gradient = d_pre != 0
        for r in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            has_gradient = has_gradient | (tl.load(slopes[r] + position) != 0)
        length = d * has_gradient.to(tl.int32)
        x_row = tl.load(x + offset, mask=c < length, other=0.0)  # loaded together with the residuals
        touched = n < 0
        for r in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            d_pre, g_dec, touched = _add_reconstruction(
                position, offset, c, row, slopes[r], values[r], residuals[r], tl.load(scales + r), projections[r],
                d_pre, g_dec, touched, d, r < LIVE, (MAY_SKIP >> r) % 2 == 1,
            )  # fmt: skip
        g_enc += d_pre * x_row
        total += d_pre.to(tl.float64)
        has_gradients = has_gradients | (d_pre != 0).to(tl.int32) | 2 * touched.to(tl.int32)
    return g_enc, g_dec, total, has_gradients


@jit
def _lazy_adam(w, moment, g, m, offset, inside, has_gradient, decay, adam, MOMENTUM: tl.constexpr):
    """Return (row, second moment) after one lazy Adam step; with MOMENTUM, update the first moments at m + offset too.

    has_gradient: 1, or 0 if the row's gradient is exactly zero. decay = β₂^(steps since last touched). adam: lr,
    1 − β₂, correction of √v, ε, β₁, 1 − β₁, correction of m.
    """
    lr, rest, correction, epsilon = tl.load(adam), tl.load(adam + 1), tl.load(adam + 2), tl.load(adam + 3)
    moment = decay * moment + rest * g * g
    if MOMENTUM:
        momentum = tl.load(m + offset, mask=inside, other=0.0)
        momentum = tl.load(adam + 4) * momentum + tl.load(adam + 5) * g
        acts = tl.where(inside, has_gradient, 0) != 0
        tl.store(m + offset, momentum, mask=acts)
        g = tl.where(acts, momentum * tl.load(adam + 6), 0.0)
    return w - lr * g / (tl.sqrt(moment) * correction + epsilon), moment


@jit
def _update_row(j, c, inside, g_enc, g_dec, has_gradients, encoder, row, norm_gradient, w_enc, w_dec, m_enc, m_dec,
                v_enc, v_dec, last_touched, decays, norms, bf16, rounding_norms, adam, step, d,
                NORM_GRADIENT: tl.constexpr, UNIT_NORM: tl.constexpr, BF16_BYTES: tl.constexpr,
                MOMENTUM: tl.constexpr):  # fmt: skip
    """Apply the gradient rows of feature j with w_j = encoder, d_j = row: decoder norm, lazy Adam, renormalisation.

    Also updates the norm and the bfloat16 copy of the encoder row. has_gradients: as `_gradient_rows` returns it.
    """
    offset = j * d + c
    moment = tl.load(v_enc + offset, mask=inside, other=0.0)
    decay = tl.load(decays + j)
    has_enc_gradient, has_dec_gradient = has_gradients % 2, has_gradients // 2
    encoder, moment = _lazy_adam(
        encoder, moment, g_enc, m_enc, offset, inside, has_enc_gradient, decay, adam, MOMENTUM
    )  # fmt: skip
    tl.store(v_enc + offset, moment, mask=inside)
    tl.store(w_enc + offset, encoder, mask=inside)
    moment = tl.load(v_dec + offset, mask=inside, other=0.0)  # prefetched during the reductions
    tl.store(norms + j, tl.sqrt(tl.sum(encoder * encoder, 0)))
    if BF16_BYTES:
        _store_bf16(encoder, offset, inside, bf16, rounding_norms + j, BF16_BYTES)
    if NORM_GRADIENT:
        coefficient = tl.load(norm_gradient + j)
        if coefficient != 0:
            g_dec += coefficient / tl.sqrt(tl.sum(row * row, 0)) * row
        has_dec_gradient = tl.where(coefficient != 0, 1, has_dec_gradient)
    if UNIT_NORM:
        g_dec -= tl.sum(g_dec * row, 0) * row
    row, moment = _lazy_adam(row, moment, g_dec, m_dec, offset, inside, has_dec_gradient, decay, adam, MOMENTUM)
    tl.store(v_dec + offset, moment, mask=inside)
    if UNIT_NORM:
        row = row / tl.sqrt(tl.sum(row * row, 0))
    tl.store(w_dec + offset, row, mask=inside)
    tl.store(last_touched + j, step)


@jit(do_not_specialize=["step"])
def update_rows(colptr, token, x, constant, slopes, values, residuals, scales, projections, input_gradient,
                norm_gradient, w_enc, w_dec, m_enc, m_dec, v_enc, v_dec, last_touched, decays, norms, bf16,
                rounding_norms, adam, step, is_valid, d, width, PARTS: tl.constexpr, LIVE: tl.constexpr,
                MAY_SKIP: tl.constexpr, CONSTANT: tl.constexpr, NORM_GRADIENT: tl.constexpr, UNIT_NORM: tl.constexpr,
                BF16_BYTES: tl.constexpr, MOMENTUM: tl.constexpr, FEATURES: tl.constexpr, PIECE: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """Update the rows of features with at most PIECE entries, FEATURES of them per program.

    input_gradient [programs, d] receives Σ_j ∂L/∂b_enc,j·W_enc,j of the program's features, with W_enc before the
    update. If `is_valid` is 0, nothing is changed.
    """
    block = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    block_sum = tl.zeros([BLOCK], x.dtype.element_ty)
    may_update = tl.load(is_valid) != 0
    for f in range(FEATURES):
        j = block * FEATURES + f
        inside_width = (j < width) & may_update
        start = tl.load(colptr + j, mask=inside_width, other=0)
        n = (tl.load(colptr + j + 1, mask=inside_width, other=0) - start).to(tl.int32)
        if (n > 0) & (n <= PIECE):
            row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
            g_enc, g_dec, total, has_gradients = _gradient_rows(
                start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
                PARTS, LIVE, MAY_SKIP, CONSTANT, BLOCK,
            )  # fmt: skip
            if has_gradients != 0:
                encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
                block_sum += total.to(x.dtype.element_ty) * encoder
                _update_row(
                    j, c, inside, g_enc, g_dec, has_gradients, encoder, row, norm_gradient, w_enc, w_dec, m_enc, m_dec,
                    v_enc, v_dec, last_touched, decays, norms, bf16, rounding_norms, adam, step, d, NORM_GRADIENT,
                    UNIT_NORM, BF16_BYTES, MOMENTUM,
                )  # fmt: skip
    tl.store(input_gradient + block * d + c, block_sum, mask=inside)


@jit
def piece_gradients(features, piece_numbers, colptr, token, x, constant, slopes, values, residuals, scales, projections,
                    piece_enc, piece_dec, piece_totals, piece_touched, w_dec, is_valid, d, width,
                    PARTS: tl.constexpr, LIVE: tl.constexpr, MAY_SKIP: tl.constexpr, CONSTANT: tl.constexpr,
                    PIECE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Compute the gradient rows of piece piece_numbers[s] of feature features[s]; one program per piece s.

    features[s] = M marks an unused piece.
    """
    s = tl.program_id(0).to(tl.int64)
    j = tl.load(features + s)
    if (j < width) & (tl.load(is_valid) != 0):
        c = tl.arange(0, BLOCK)
        inside = c < d
        start = tl.load(colptr + j) + tl.load(piece_numbers + s) * PIECE
        n = tl.minimum(tl.load(colptr + j + 1) - start, PIECE).to(tl.int32)
        row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
        g_enc, g_dec, total, has_gradients = _gradient_rows(
            start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
            PARTS, LIVE, MAY_SKIP, CONSTANT, BLOCK,
        )  # fmt: skip
        tl.store(piece_enc + s * d + c, g_enc, mask=inside)
        tl.store(piece_dec + s * d + c, g_dec, mask=inside)
        tl.store(piece_totals + s, total)
        tl.store(piece_touched + s, has_gradients)


@jit(do_not_specialize=["step"])
def update_rows_from_pieces(features, piece_numbers, piece_enc, piece_dec, piece_totals, piece_touched, input_gradient,
                            colptr, norm_gradient, w_enc, w_dec, m_enc, m_dec, v_enc, v_dec, last_touched, decays,
                            norms, bf16, rounding_norms, adam, step, is_valid, d, width, NORM_GRADIENT: tl.constexpr,
                            UNIT_NORM: tl.constexpr, BF16_BYTES: tl.constexpr, MOMENTUM: tl.constexpr,
                            PIECE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Add the pieces of each feature in order and update its rows. input_gradient [pieces, d]: as in `update_rows`."""
    s = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    kind: tl.constexpr = w_enc.dtype.element_ty
    block_sum = tl.zeros([BLOCK], kind)
    j = tl.load(features + s)
    if (j < width) & (tl.load(piece_numbers + s) == 0) & (tl.load(is_valid) != 0):
        n = tl.load(colptr + j + 1) - tl.load(colptr + j)
        count = ((n + PIECE - 1) // PIECE).to(tl.int32)
        g_enc = tl.zeros([BLOCK], kind)
        g_dec = tl.zeros([BLOCK], kind)
        total = tl.load(piece_totals + s) * 0.0
        has_gradients = tl.load(piece_touched + s) * 0
        for k in range(count):
            g_enc += tl.load(piece_enc + (s + k) * d + c, mask=inside, other=0.0)
            g_dec += tl.load(piece_dec + (s + k) * d + c, mask=inside, other=0.0)
            total += tl.load(piece_totals + s + k)
            has_gradients = has_gradients | tl.load(piece_touched + s + k)
        if has_gradients != 0:
            encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
            row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
            block_sum += total.to(kind) * encoder
            _update_row(
                j, c, inside, g_enc, g_dec, has_gradients, encoder, row, norm_gradient, w_enc, w_dec, m_enc, m_dec,
                v_enc, v_dec, last_touched, decays, norms, bf16, rounding_norms, adam, step, d, NORM_GRADIENT,
                UNIT_NORM, BF16_BYTES, MOMENTUM,
            )  # fmt: skip
    tl.store(input_gradient + s * d + c, block_sum, mask=inside)


@jit(do_not_specialize=["step"])
def apply_row_gradients(features, g_enc, g_dec, touched, norm_gradient, w_enc, w_dec, m_enc, m_dec, v_enc, v_dec,
                        last_touched, decays, norms, bf16, rounding_norms, adam, step, is_valid, d,
                        NORM_GRADIENT: tl.constexpr, UNIT_NORM: tl.constexpr, BF16_BYTES: tl.constexpr,
                        MOMENTUM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Apply gradient rows [m, d] to the touched ones of `features` [m]; touched [m, 2]. One program per row."""
    s = tl.program_id(0).to(tl.int64)
    has_gradients = tl.load(touched + 2 * s).to(tl.int32) + 2 * tl.load(touched + 2 * s + 1).to(tl.int32)
    if (has_gradients != 0) & (tl.load(is_valid) != 0):
        c = tl.arange(0, BLOCK)
        inside = c < d
        j = tl.load(features + s)
        encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
        row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
        _update_row(
            j, c, inside, tl.load(g_enc + s * d + c, mask=inside, other=0.0),
            tl.load(g_dec + s * d + c, mask=inside, other=0.0), has_gradients, encoder, row, norm_gradient, w_enc,
            w_dec, m_enc, m_dec, v_enc, v_dec, last_touched, decays, norms, bf16, rounding_norms, adam, step, d,
            NORM_GRADIENT, UNIT_NORM, BF16_BYTES, MOMENTUM,
        )  # fmt: skip
