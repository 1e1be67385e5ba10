"""The kernels of steps 3 and 5: walks over the support, token by token (decode) and feature by feature (rows).

A feature with few entries is handled whole by one program: projections, gradient rows, decoder norm, lazy Adam. One
with many is cut into pieces of LONG entries, whose sums are added in their order by a second kernel. No float is added
by an atomic operation: every sum's order follows from the entries alone.

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `supports.Support`. BLOCK ≥ d columns of a row are held at once (`decode`: BLOCK columns of ENTRIES rows). Offsets
are 64 bits wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import triton  # pyright: ignore[reportMissingImports] — not installed with jumpahead: it comes with torch on a GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]

jit = cast("Callable[..., Any]", triton.jit)
"""Its functions are launched with arguments that no type checker knows."""


@jit
def _rounded(value):
    """(bits, number) of float32 values rounded to bfloat16, to nearest, ties to even."""
    bits = value.to(tl.uint32, bitcast=True)
    half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return half.to(tl.uint16).to(tl.int16, bitcast=True), (half << 16).to(tl.float32, bitcast=True)


@jit
def _store_low(value, at, inside, low, gap_at, LOW: tl.constexpr):
    """The row `value` in bfloat16, LOW bytes at a time, and how much of it is lost: ‖value − low‖.

    Eight bytes are four numbers, as of a float32 row: sixteen would be another layout, and a way through shared memory.
    """
    bits, back = _rounded(value)
    tl.store(tl.multiple_of(low + at, LOW), bits, mask=inside)
    lost = tl.where(inside, value - back, 0.0)
    tl.store(gap_at, tl.sqrt(tl.sum(lost * lost, 0)))


@jit
def centre(x, bias, out, norms, low, gaps, d, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """out = x − bias, the norm of each row, and its bfloat16 copy. One program per row."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    at = i * d + c
    value = tl.load(x + at, mask=inside, other=0.0) - tl.load(bias + c, mask=inside, other=0.0)
    tl.store(out + at, value, mask=inside)
    tl.store(norms + i, tl.sqrt(tl.sum(value * value, 0)))
    if LOW:
        _store_low(value, at, inside, low, gaps + i, LOW)


@jit
def round_rows(w, norms, low, gaps, d, LOW: tl.constexpr, BLOCK: tl.constexpr):
    """The norm of each row of w and its bfloat16 copy."""
    j = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    value = tl.load(w + j * d + c, mask=inside, other=0.0)
    tl.store(norms + j, tl.sqrt(tl.sum(value * value, 0)))
    if LOW:
        _store_low(value, j * d + c, inside, low, gaps + j, LOW)


@jit
def decode(indptr, order, feature, values, w_dec, bias, target, out, squares, d,
           SIGN: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out[i] = Σ value·d_j + bias − sign·target_i over token i's entries; squares[i, ·]: its squared norm, by blocks
    of columns. One program per token and block."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < d
    start = tl.load(indptr + i)
    n = (tl.load(indptr + i + 1) - start).to(tl.int32)
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    for s in range(0, n, ENTRIES):
        place = s + tl.arange(0, ENTRIES)
        valid = place < n
        q = tl.load(order + start + place, mask=valid, other=0).to(tl.int64)
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
def sums(colptr, vector, out, width, FEATURES: tl.constexpr, TILE: tl.constexpr):
    """out[j] = Σ vector over feature j's entries, in float64. One program per FEATURES features."""
    j = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    inside = j < width
    start = tl.load(colptr + j, mask=inside, other=0)
    stop = tl.load(colptr + j + 1, mask=inside, other=0)
    most = tl.max((stop - start).to(tl.int32), 0)
    total = tl.zeros([FEATURES], tl.float64)
    for s in range(0, most, TILE):  # pyright: ignore[reportArgumentType]
        place = start[:, None] + (s + tl.arange(0, TILE))[None, :]
        total += tl.sum(tl.load(vector + place, mask=place < stop[:, None], other=0.0).to(tl.float64), 1)
    tl.store(out + j, total.to(out.dtype.element_ty), mask=inside)


@jit
def _along(place, at, c, row, slopes, values, residual, scale, projections, d_pre, g_dec, touched, d,
           LIVE: tl.constexpr, SPARE: tl.constexpr):  # fmt: skip
    """One reconstruction's part of an entry: its projection, and what it adds to ∂L/∂π and ∂L/∂d_j."""
    slope = tl.load(slopes + place)
    weight = slope * 0.0
    if LIVE:
        weight = tl.load(values + place) * scale
        touched = touched | (weight != 0)
    length = d
    if SPARE:
        length = d * ((slope != 0) | (weight != 0)).to(tl.int32)
    error = tl.load(residual + at, mask=c < length, other=0.0)
    projection = scale * tl.sum(error * row, 0)
    tl.store(projections + place, projection)
    if LIVE:
        g_dec += weight * error
    return d_pre + slope * projection, g_dec, touched


@jit
def _gather(start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
            PARTS: tl.constexpr, LIVE: tl.constexpr, SPARE: tl.constexpr, CONSTANT: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """Of n entries of one feature from place `start`, d_j = row: (gradient row of w_j, of d_j, Σ ∂L/∂π, whether any
    entry has a gradient). Of each of PARTS reconstructions, of which the first LIVE are live, there are slopes, values,
    residuals and projections; bit r of SPARE is its `spare`. One entry after the other, all in rows: any other order
    of the same numbers takes a way through shared memory."""
    kind: tl.constexpr = x.dtype.element_ty
    g_enc = tl.zeros([BLOCK], kind)
    g_dec = tl.zeros([BLOCK], kind)
    total = tl.load(scales).to(tl.float64) * 0.0
    any_touched = n < 0
    for s in range(n):
        place = start + s
        at = tl.load(token + place).to(tl.int64) * d + c
        d_pre = tl.load(scales) * 0.0
        if CONSTANT:
            d_pre = tl.load(constant + place)
        may_move = d_pre != 0
        for r in tl.static_range(PARTS):
            may_move = may_move | (tl.load(slopes[r] + place) != 0)
        length = d * may_move.to(tl.int32)
        centred = tl.load(x + at, mask=c < length, other=0.0)  # on its way with the residuals
        touched = n < 0
        for r in tl.static_range(PARTS):
            d_pre, g_dec, touched = _along(
                place, at, c, row, slopes[r], values[r], residuals[r], tl.load(scales + r), projections[r],
                d_pre, g_dec, touched, d, r < LIVE, (SPARE >> r) % 2 == 1,
            )  # fmt: skip
        g_enc += d_pre * centred
        total += d_pre.to(tl.float64)
        any_touched = any_touched | touched | (d_pre != 0)
    return g_enc, g_dec, total, any_touched.to(tl.int32)


@jit
def _adam(w, moment, g, lr, decay, rest, correction, epsilon):
    """One lazy Adam step on a row w: (row, moment). decay = β₂^skipped, rest = 1 − β₂."""
    moment = decay * moment + rest * g * g
    return w - lr * g / (tl.sqrt(moment) * correction + epsilon), moment


@jit
def _move(j, c, inside, g_enc, g_dec, encoder, row, shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms, low, gaps,
          adam, step, d, SHRINK: tl.constexpr, UNIT: tl.constexpr, LOW: tl.constexpr):  # fmt: skip
    """The gradient rows of feature j with w_j = encoder, d_j = row: decoder norm, lazy Adam, renormalise; and what the
    screen needs of W_enc."""
    at = j * d + c
    m_enc = tl.load(v_enc + at, mask=inside, other=0.0)
    decay = tl.load(decays + j)
    lr, rest, correction, epsilon = tl.load(adam), tl.load(adam + 1), tl.load(adam + 2), tl.load(adam + 3)
    encoder, m_enc = _adam(encoder, m_enc, g_enc, lr, decay, rest, correction, epsilon)
    tl.store(v_enc + at, m_enc, mask=inside)
    tl.store(w_enc + at, encoder, mask=inside)
    m_dec = tl.load(v_dec + at, mask=inside, other=0.0)  # on its way while sums are made
    tl.store(norms + j, tl.sqrt(tl.sum(encoder * encoder, 0)))
    if LOW:
        _store_low(encoder, at, inside, low, gaps + j, LOW)
    if SHRINK:
        push = tl.load(shrink + j)
        if push != 0:
            g_dec += push / tl.sqrt(tl.sum(row * row, 0)) * row
    if UNIT:
        g_dec -= tl.sum(g_dec * row, 0) * row
    row, m_dec = _adam(row, m_dec, g_dec, lr, decay, rest, correction, epsilon)
    tl.store(v_dec + at, m_dec, mask=inside)
    if UNIT:
        row = row / tl.sqrt(tl.sum(row * row, 0))
    tl.store(w_dec + at, row, mask=inside)
    tl.store(last + j, step)


@jit(do_not_specialize=["step"])
def rows(colptr, token, x, constant, slopes, values, residuals, scales, projections, pull,
         shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms, low, gaps, adam, step, fine, d, width,
         PARTS: tl.constexpr, LIVE: tl.constexpr, SPARE: tl.constexpr, CONSTANT: tl.constexpr, SHRINK: tl.constexpr,
         UNIT: tl.constexpr, LOW: tl.constexpr, FEATURES: tl.constexpr, LONG: tl.constexpr,
         BLOCK: tl.constexpr):  # fmt: skip
    """Features of at most LONG entries, FEATURES of them per program: project, gradient rows, decoder norm, lazy Adam.

    pull [programs, d] gets Σ_j ∂L/∂b_enc,j·W_enc,j of the program's features, with W_enc as it was. Where `fine` is 0
    nothing is touched.
    """
    block = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    part = tl.zeros([BLOCK], x.dtype.element_ty)
    is_fine = tl.load(fine) != 0
    for f in range(FEATURES):
        j = block * FEATURES + f
        here = (j < width) & is_fine
        start = tl.load(colptr + j, mask=here, other=0)
        n = (tl.load(colptr + j + 1, mask=here, other=0) - start).to(tl.int32)
        if (n > 0) & (n <= LONG):
            row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
            g_enc, g_dec, total, touched = _gather(
                start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
                PARTS, LIVE, SPARE, CONSTANT, BLOCK,
            )  # fmt: skip
            if touched != 0:
                encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
                part += total.to(x.dtype.element_ty) * encoder
                _move(
                    j, c, inside, g_enc, g_dec, encoder, row, shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms,
                    low, gaps, adam, step, d, SHRINK, UNIT, LOW,
                )  # fmt: skip
    tl.store(pull + block * d + c, part, mask=inside)


@jit
def pieces(features, numbers, colptr, token, x, constant, slopes, values, residuals, scales, projections,
           some_enc, some_dec, some_total, some_touched, w_dec, fine, d, width,
           PARTS: tl.constexpr, LIVE: tl.constexpr, SPARE: tl.constexpr, CONSTANT: tl.constexpr, LONG: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Piece numbers[s] of feature features[s] (M: none), one per program s: its part of the gradient rows."""
    s = tl.program_id(0).to(tl.int64)
    j = tl.load(features + s)
    if (j < width) & (tl.load(fine) != 0):
        c = tl.arange(0, BLOCK)
        inside = c < d
        start = tl.load(colptr + j) + tl.load(numbers + s) * LONG
        n = tl.minimum(tl.load(colptr + j + 1) - start, LONG).to(tl.int32)
        row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
        g_enc, g_dec, total, touched = _gather(
            start, n, row, c, token, x, constant, slopes, values, residuals, scales, projections, d,
            PARTS, LIVE, SPARE, CONSTANT, BLOCK,
        )  # fmt: skip
        tl.store(some_enc + s * d + c, g_enc, mask=inside)
        tl.store(some_dec + s * d + c, g_dec, mask=inside)
        tl.store(some_total + s, total)
        tl.store(some_touched + s, touched)


@jit(do_not_specialize=["step"])
def joined(features, numbers, some_enc, some_dec, some_total, some_touched, pull, colptr,
           shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms, low, gaps, adam, step, fine, d, width,
           SHRINK: tl.constexpr, UNIT: tl.constexpr, LOW: tl.constexpr, LONG: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """The features that were cut: adds their pieces in order and updates their rows. pull [pieces, d]: as in `rows`."""
    s = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < d
    kind: tl.constexpr = w_enc.dtype.element_ty
    part = tl.zeros([BLOCK], kind)
    j = tl.load(features + s)
    if (j < width) & (tl.load(numbers + s) == 0) & (tl.load(fine) != 0):
        n = tl.load(colptr + j + 1) - tl.load(colptr + j)
        count = ((n + LONG - 1) // LONG).to(tl.int32)
        g_enc = tl.zeros([BLOCK], kind)
        g_dec = tl.zeros([BLOCK], kind)
        total = tl.load(some_total + s) * 0.0
        touched = tl.load(some_touched + s) * 0
        for k in range(count):
            g_enc += tl.load(some_enc + (s + k) * d + c, mask=inside, other=0.0)
            g_dec += tl.load(some_dec + (s + k) * d + c, mask=inside, other=0.0)
            total += tl.load(some_total + s + k)
            touched = touched | tl.load(some_touched + s + k)
        if touched != 0:
            encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
            row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
            part += total.to(kind) * encoder
            _move(
                j, c, inside, g_enc, g_dec, encoder, row, shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms,
                low, gaps, adam, step, d, SHRINK, UNIT, LOW,
            )  # fmt: skip
    tl.store(pull + s * d + c, part, mask=inside)


@jit(do_not_specialize=["step"])
def given_rows(features, g_enc, g_dec, touched, shrink, w_enc, w_dec, v_enc, v_dec, last, decays, norms, low, gaps,
               adam, step, fine, d, SHRINK: tl.constexpr, UNIT: tl.constexpr, LOW: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """The end of `rows` with gradient rows [m, d] that are there already, of `features` [m]. One program per row."""
    s = tl.program_id(0).to(tl.int64)
    if (tl.load(touched + s) != 0) & (tl.load(fine) != 0):
        c = tl.arange(0, BLOCK)
        inside = c < d
        j = tl.load(features + s)
        encoder = tl.load(w_enc + j * d + c, mask=inside, other=0.0)
        row = tl.load(w_dec + j * d + c, mask=inside, other=0.0)
        _move(
            j, c, inside, tl.load(g_enc + s * d + c, mask=inside, other=0.0),
            tl.load(g_dec + s * d + c, mask=inside, other=0.0), encoder, row, shrink, w_enc, w_dec, v_enc, v_dec, last,
            decays, norms, low, gaps, adam, step, d, SHRINK, UNIT, LOW,
        )  # fmt: skip
