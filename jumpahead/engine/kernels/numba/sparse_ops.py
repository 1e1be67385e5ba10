"""The loops of steps 3 and 5: walks over the support, token by token (decode) and feature by feature (rows).

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `step.Support`. Each token or feature is handled whole by one thread.
"""

from __future__ import annotations

import math

import numpy as np

from jumpahead.engine.kernels.numba.screen import parallel, serial
from jumpahead.engine.kernels.numba.simd import fetch, number


@parallel
def dot(a, b):
    total = a.dtype.type(0)
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


@parallel
def add_rows(total, rows, which, weights, n):
    """total += Σ weights[q]·rows[which[q]] over q < n; four rows at a time, for each pass writes `total` anew."""
    for q in range(0, n - 3, 4):
        a, b, c, e = rows[which[q]], rows[which[q + 1]], rows[which[q + 2]], rows[which[q + 3]]
        u, v, w, y = weights[q], weights[q + 1], weights[q + 2], weights[q + 3]
        for t in range(len(total)):
            total[t] += u * a[t] + v * b[t] + w * c[t] + y * e[t]
    for q in range(n // 4 * 4, n):
        a, u = rows[which[q]], weights[q]
        for t in range(len(total)):
            total[t] += u * a[t]


@parallel
def round_row(row, low):
    """low ← row as bits of bfloat16, to nearest, ties to even. Returns ‖row − low‖."""
    bits = row.view(np.uint32)
    for t in range(len(row)):
        even = (bits[t] >> np.uint32(16)) & np.uint32(1)
        low[t] = np.int16((bits[t] + np.uint32(0x7FFF) + even) >> np.uint32(16))
    total = np.float32(0)
    for t in range(len(row)):
        gap = row[t] - number(low[t])
        total += gap * gap
    return np.sqrt(total)


@parallel
def centre(first, last, x, bias, out, norms, low, gaps):
    """out = x − bias, and the norm of each row; where there is room for it, what `round_row` makes of each."""
    for i in range(first, last):
        total = x.dtype.type(0)
        for t in range(x.shape[1]):
            value = x[i, t] - bias[t]
            out[i, t] = value
            total += value * value
        norms[i] = np.sqrt(total)
        if len(gaps):
            gaps[i] = round_row(out[i], low[i])


@parallel
def round_rows(first, last, x, low, gaps):
    """`round_row` of each row."""
    for i in range(first, last):
        gaps[i] = round_row(x[i], low[i])


@parallel
def decode(first, last, indptr, order, feature, values, w_dec, bias, target, sign, out, squares):
    """out[i] = Σ value·d_j + bias − sign·target_i over token i's entries, and its squared norm.

    Two entries with a value at a time: half the traffic of the row that is added to.
    """
    sign = w_dec.dtype.type(sign)
    size = 0
    for i in range(first, last):
        size = max(size, indptr[i + 1] - indptr[i])
    some, weight = np.empty(size, np.int32), np.empty(size, w_dec.dtype)
    for i in range(first, last):
        row, goal, n = out[i], target[i], 0
        for place in range(indptr[i], indptr[i + 1]):
            q = order[place]
            some[n], weight[n] = feature[q], values[q]
            n += values[q] != 0
        for t in range(len(row)):
            row[t] = bias[t] - sign * goal[t]
        add_rows(row, w_dec, some, weight, n)
        squares[i] = np.float64(dot(row, row))


@parallel
def sums(first, last, colptr, vector, out):
    """out[j] = Σ vector over feature j's entries, in float64, in token order."""
    for j in range(first, last):
        total = 0.0
        for q in range(colptr[j], colptr[j + 1]):
            total += np.float64(vector[q])
        out[j] = total


@parallel
def fired(first, last, colptr, values, out):
    """out[j] = how many of feature j's values are positive."""
    for j in range(first, last):
        n = 0
        for q in range(colptr[j], colptr[j + 1]):
            n += values[q] > 0
        out[j] = n


@serial
def summed(first, last, colptr, slopes, projections, constant, out):
    """out[j] = Σ (Σ_r slope_r·projection_r + constant) over feature j's entries, in float64, in token order. Every
    operation is rounded, as tensors' are."""
    for j in range(first, last):
        total = 0.0
        for q in range(colptr[j], colptr[j + 1]):
            one = constant[q] if len(constant) else out.dtype.type(0)
            for r in range(len(slopes)):
                one += slopes[r][q] * projections[r][q]
            total += np.float64(one)
        out[j] = total


@parallel
def at(first, last, colptr, vector, out):
    """out[q] = vector[j] at every entry of feature j."""
    for j in range(first, last):
        for q in range(colptr[j], colptr[j + 1]):
            out[q] = vector[j]


@parallel
def between(first, last, colptr, pre, low, high, weight, out):
    """out[q] = weight[j] where low[j] < pre[q] < high[j], and 0 elsewhere. No high, no weight: infinity, and 1."""
    for j in range(first, last):
        least, most = low[j], high[j] if len(high) else pre.dtype.type(np.inf)
        here = weight[j] if len(weight) else pre.dtype.type(1)
        for q in range(colptr[j], colptr[j + 1]):
            out[q] = here if (pre[q] > least) & (pre[q] < most) else pre.dtype.type(0)


@parallel
def _adam(w, v, g, lr, decay, rest, correction, epsilon):
    """One lazy Adam step on a row, in place; decay = β₂^skipped, rest = 1 − β₂."""
    for t in range(len(w)):
        moment = decay * v[t] + rest * g[t] * g[t]
        v[t] = moment
        w[t] -= lr * g[t] / (np.sqrt(moment) * correction + epsilon)


@parallel
def _move(j, g_enc, g_dec, shrink, unit, w_enc, w_dec, v_enc, v_dec, last_step, norms, low, gaps, adam):
    """The gradient rows of feature j: decoder norm, lazy Adam, renormalise; and what the screen needs of W_enc."""
    step, lr, beta2, correction, epsilon = adam
    kind = w_enc.dtype.type
    row = w_dec[j]
    if len(shrink) and shrink[j] != 0:
        scale = shrink[j] / np.sqrt(dot(row, row))
        for t in range(len(row)):
            g_dec[t] += scale * row[t]
    if unit:
        along = dot(g_dec, row)
        for t in range(len(row)):
            g_dec[t] -= along * row[t]
    decay = kind(math.pow(beta2, step - last_step[j]))
    last_step[j] = step
    _adam(w_enc[j], v_enc[j], g_enc, kind(lr), decay, kind(1 - beta2), kind(correction), kind(epsilon))
    _adam(row, v_dec[j], g_dec, kind(lr), decay, kind(1 - beta2), kind(correction), kind(epsilon))
    if unit:
        scale = kind(1) / np.sqrt(dot(row, row))
        for t in range(len(row)):
            row[t] *= scale
    norms[j] = np.sqrt(dot(w_enc[j], w_enc[j]))
    if len(gaps):
        gaps[j] = round_row(w_enc[j], low[j])


@parallel
def rows(
    first, last, block, colptr, token, x, slopes, constant, values, live, residuals, scales, spare, shrink, unit,
    w_enc, w_dec, v_enc, v_dec, last_step, norms, low, gaps, adam, projections, pull,
):  # fmt: skip
    """Features of blocks first … last − 1: project, gradient rows, decoder norm, lazy Adam. No gradient leaves a row.

    Of every entry and reconstruction r: projection = scale_r·residual_r·d_j; ∂L/∂π = Σ_r slope_r·projection_r +
    constant. values, of the first `live` reconstructions: ∂L/∂d_j = Σ value·scale·residual. pull
    [blocks, d] gets Σ_j ∂L/∂b_enc,j·W_enc,j of each block, with W_enc as it was.
    """
    d, zero = w_enc.shape[1], x.dtype.type(0)
    g_enc, g_dec, d_pre = np.empty(d, x.dtype), np.empty(d, x.dtype), np.empty(len(x), x.dtype)
    some, weight = np.empty(len(x), np.int32), np.empty(len(x), x.dtype)
    for j in range(first * block, min(last * block, len(w_enc))):
        start, n = colptr[j], colptr[j + 1] - colptr[j]
        if n == 0:
            continue
        fetch(w_enc, j)
        fetch(v_enc, j)
        fetch(v_dec, j)
        touched, direction, tokens = False, w_dec[j], token[start : start + n]
        g_dec[:] = zero
        for q in range(n):
            d_pre[q] = constant[start + q] if len(constant) else zero
        for r in range(len(residuals)):
            slope, projection = slopes[r][start : start + n], projections[r][start : start + n]
            residual, scale, live_here, m = residuals[r], scales[r], r < live, 0
            for q in range(n):
                weight[m] = values[r][start + q] * scale if live_here else zero
                some[m] = tokens[q]
                is_on = weight[m] != 0
                along = zero
                if is_on or slope[q] != 0 or not spare[r]:
                    along = dot(residual[tokens[q]], direction)
                m += is_on
                projection[q] = scale * along
                d_pre[q] += slope[q] * projection[q]
            touched |= m > 0
            add_rows(g_dec, residual, some, weight, m)
        m, total = 0, 0.0
        for q in range(n):
            total += np.float64(d_pre[q])
            some[m], weight[m] = tokens[q], d_pre[q]
            m += d_pre[q] != 0
        touched |= m > 0
        if not touched:
            continue
        g_enc[:] = zero
        add_rows(g_enc, x, some, weight, m)
        part, before = pull[j // block], x.dtype.type(total)
        for t in range(d):
            part[t] += before * w_enc[j, t]
        _move(j, g_enc, g_dec, shrink, unit, w_enc, w_dec, v_enc, v_dec, last_step, norms, low, gaps, adam)


@parallel
def given_rows(
    first, last, features, g_enc, g_dec, touched, shrink, unit,
    w_enc, w_dec, v_enc, v_dec, last_step, norms, low, gaps, adam,
):  # fmt: skip
    """The same with gradient rows that are there already: [m, d] for `features` [m]. shrink [M] or empty."""
    for c in range(first, last):
        j = features[c]
        if touched[c]:
            _move(j, g_enc[c], g_dec[c], shrink, unit, w_enc, w_dec, v_enc, v_dec, last_step, norms, low, gaps, adam)
