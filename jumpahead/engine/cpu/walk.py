"""The loops of steps 3 and 5: walks over the support, token by token (decode) and feature by feature (rows).

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `step.Support`. Each token or feature is handled whole by one thread.
"""

from __future__ import annotations

import math

import numpy as np

from jumpahead.engine.cpu.lanes import number
from jumpahead.engine.cpu.screen import parallel


@parallel
def dot(a, b):
    total = a.dtype.type(0)
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


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
def centre(first, last, x, bias, out, norms):
    """out = x − bias, and the norm of each row."""
    for i in range(first, last):
        total = x.dtype.type(0)
        for t in range(x.shape[1]):
            value = x[i, t] - bias[t]
            out[i, t] = value
            total += value * value
        norms[i] = np.sqrt(total)


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
    d = w_dec.shape[1]
    sign = w_dec.dtype.type(sign)
    for i in range(first, last):
        row, goal, end, place = out[i], target[i], indptr[i + 1], indptr[i]
        for t in range(d):
            row[t] = bias[t] - sign * goal[t]
        while place < end:
            q = order[place]
            place += 1
            if values[q] == 0:
                continue
            while place < end and values[order[place]] == 0:
                place += 1
            a, one = values[q], w_dec[feature[q]]
            if place < end:
                p = order[place]
                place += 1
                b, other = values[p], w_dec[feature[p]]
                for t in range(d):
                    row[t] += a * one[t] + b * other[t]
            else:
                for t in range(d):
                    row[t] += a * one[t]
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
    d = w_enc.shape[1]
    zero = x.dtype.type(0)
    g_enc, g_dec, d_pre = np.empty(d, x.dtype), np.empty(d, x.dtype), np.empty(len(x), x.dtype)
    for j in range(first * block, min(last * block, len(w_enc))):
        start, n = colptr[j], colptr[j + 1] - colptr[j]
        if n == 0:
            continue
        g_enc[:] = zero
        g_dec[:] = zero
        touched, total, direction = False, 0.0, w_dec[j]
        for q in range(n):
            d_pre[q] = constant[start + q] if len(constant) else zero
        for r in range(len(residuals)):
            slope, value, residual, scale = slopes[r], values[r], residuals[r], scales[r]
            projection, is_spare = projections[r], spare[r]
            for q in range(n):
                place = start + q
                weight = value[place] * scale if r < live else zero
                if weight != 0:
                    touched = True
                    along = zero
                    row = residual[token[place]]
                    for t in range(d):
                        along += row[t] * direction[t]
                        g_dec[t] += weight * row[t]
                elif slope[place] != 0 or not is_spare:
                    along = dot(residual[token[place]], direction)
                else:
                    along = zero
                projection[place] = scale * along
                d_pre[q] += slope[place] * projection[place]
        for q in range(n):
            if d_pre[q] != 0:
                touched = True
                total += np.float64(d_pre[q])
                row = x[token[start + q]]
                for t in range(d):
                    g_enc[t] += d_pre[q] * row[t]
        if not touched:
            continue
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
