"""Compiled loops of steps 3 and 5 over the support: token by token (decode) and feature by feature (row updates).

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `supports.Support`. Each token or feature is processed by one thread.
"""

from __future__ import annotations

import math

import numpy as np

from jumpahead.engine.kernels.numba.jit import inlined, reassociating, strict
from jumpahead.engine.kernels.numba.simd import prefetch_row, to_float


@inlined
def dot(a, b):
    """Return Σ a·b in the dtype of a."""
    total = a.dtype.type(0)
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


@inlined
def add_scaled_rows(total, rows, index, weights, n):
    """Add Σ weights[q]·rows[index[q]] over q < n to `total`; four rows at a time, to write `total` less often."""
    for q in range(0, n - 3, 4):
        a, b, c, e = rows[index[q]], rows[index[q + 1]], rows[index[q + 2]], rows[index[q + 3]]
        u, v, w, y = weights[q], weights[q + 1], weights[q + 2], weights[q + 3]
        for t in range(len(total)):
            total[t] += u * a[t] + v * b[t] + w * c[t] + y * e[t]
    for q in range(n // 4 * 4, n):
        a, u = rows[index[q]], weights[q]
        for t in range(len(total)):
            total[t] += u * a[t]


@inlined
def round_row_to_bf16(row, bf16):
    """Round `row` to bfloat16 bits in `bf16`, to nearest, ties to even; return ‖row − bf16‖."""
    bits = row.view(np.uint32)
    for t in range(len(row)):
        even = (bits[t] >> np.uint32(16)) & np.uint32(1)
        bf16[t] = np.int16((bits[t] + np.uint32(0x7FFF) + even) >> np.uint32(16))
    total = np.float32(0)
    for t in range(len(row)):
        error = row[t] - to_float(bf16[t])
        total += error * error
    return np.sqrt(total)


@reassociating
def subtract_bias(first, last, x, bias, out, norms, bf16, rounding_norms):
    """Set out = x − bias and the norm of each row; unless rounding_norms is empty, also round each row to bfloat16."""
    for i in range(first, last):
        total = x.dtype.type(0)
        for t in range(x.shape[1]):
            value = x[i, t] - bias[t]
            out[i, t] = value
            total += value * value
        norms[i] = np.sqrt(total)
        if len(rounding_norms):
            rounding_norms[i] = round_row_to_bf16(out[i], bf16[i])


@reassociating
def round_rows_to_bf16(first, last, x, bf16, rounding_norms):
    """Round each row to bfloat16 bits; set rounding_norms[i] = ‖row − bf16‖."""
    for i in range(first, last):
        rounding_norms[i] = round_row_to_bf16(x[i], bf16[i])


@reassociating
def decode(first, last, indptr, order, feature, values, w_dec, bias, target, sign, out, squares):
    """Set out[i] = Σ value·d_j + bias − sign·target_i over token i's entries, and squares[i] = ‖out[i]‖².

    Entries with value 0 are skipped.
    """
    sign = w_dec.dtype.type(sign)
    size = 0
    for i in range(first, last):
        size = max(size, indptr[i + 1] - indptr[i])
    index, weight = np.empty(size, np.int32), np.empty(size, w_dec.dtype)
    for i in range(first, last):
        row, goal, n = out[i], target[i], 0
        for position in range(indptr[i], indptr[i + 1]):
            q = order[position]
            index[n], weight[n] = feature[q], values[q]
            n += values[q] != 0
        for t in range(len(row)):
            row[t] = bias[t] - sign * goal[t]
        add_scaled_rows(row, w_dec, index, weight, n)
        squares[i] = np.float64(dot(row, row))


@reassociating
def sum_per_feature(first, last, colptr, vector, out):
    """Set out[j] = Σ vector over feature j's entries, summed in float64 in token order."""
    for j in range(first, last):
        total = 0.0
        for q in range(colptr[j], colptr[j + 1]):
            total += np.float64(vector[q])
        out[j] = total


@reassociating
def count_positive_per_feature(first, last, colptr, values, out):
    """Set out[j] to the number of positive values of feature j."""
    for j in range(first, last):
        n = 0
        for q in range(colptr[j], colptr[j + 1]):
            n += values[q] > 0
        out[j] = n


@strict
def sum_gradient_per_feature(first, last, colptr, slopes, projections, constant, out):
    """Set out[j] = Σ (Σ_r slope_r·projection_r + constant) over feature j's entries, in float64, in token order.

    Every operation is rounded, as in torch's tensor operations.
    """
    for j in range(first, last):
        total = 0.0
        for q in range(colptr[j], colptr[j + 1]):
            one = constant[q] if len(constant) else out.dtype.type(0)
            for r in range(len(slopes)):
                one += slopes[r][q] * projections[r][q]
            total += np.float64(one)
        out[j] = total


@reassociating
def broadcast_to_entries(first, last, colptr, vector, out):
    """Set out[q] = vector[j] at every entry q of feature j."""
    for j in range(first, last):
        for q in range(colptr[j], colptr[j + 1]):
            out[q] = vector[j]


@reassociating
def indicator_between(first, last, colptr, pre, low, high, weight, out):
    """Set out[q] = weight[j] if low[j] < pre[q] < high[j], else 0. Empty high: +∞. Empty weight: 1."""
    for j in range(first, last):
        least, most = low[j], high[j] if len(high) else pre.dtype.type(np.inf)
        here = weight[j] if len(weight) else pre.dtype.type(1)
        for q in range(colptr[j], colptr[j + 1]):
            out[q] = here if (pre[q] > least) & (pre[q] < most) else pre.dtype.type(0)


@inlined
def _lazy_adam(w, v, g, lr, decay, rest, correction, epsilon):
    """Apply one lazy Adam step to a row, in place; decay = β₂^(steps since last touched), rest = 1 − β₂."""
    for t in range(len(w)):
        moment = decay * v[t] + rest * g[t] * g[t]
        v[t] = moment
        w[t] -= lr * g[t] / (np.sqrt(moment) * correction + epsilon)


@inlined
def _lazy_adam_with_momentum(w, m, v, g, lr, beta1, rest1, decay, rest, momentum_correction, correction, epsilon):
    """Apply one lazy Adam step with row momentum to a row with a gradient, in place; rest1 = 1 − β₁."""
    for t in range(len(w)):
        momentum = beta1 * m[t] + rest1 * g[t]
        moment = decay * v[t] + rest * g[t] * g[t]
        m[t], v[t] = momentum, moment
        w[t] -= lr * (momentum * momentum_correction) / (np.sqrt(moment) * correction + epsilon)


@inlined
def _update_matrix_row(j, w, m, v, g, has_gradient, decay, adam):
    """Take the lazy Adam step of row j of one matrix: without momentum if `m` is empty."""
    _, lr, beta1, beta2, momentum_correction, correction, epsilon = adam
    kind = w.dtype.type
    if len(m) == 0:
        _lazy_adam(w[j], v[j], g, kind(lr), decay, kind(1 - beta2), kind(correction), kind(epsilon))
    elif has_gradient:
        _lazy_adam_with_momentum(
            w[j], m[j], v[j], g, kind(lr), kind(beta1), kind(1 - beta1), decay, kind(1 - beta2),
            kind(momentum_correction), kind(correction), kind(epsilon),
        )  # fmt: skip
    else:
        for t in range(v.shape[1]):
            v[j, t] *= decay


@inlined
def _update_row(
    j, g_enc, g_dec, has_enc_gradient, has_dec_gradient, norm_gradient, is_unit_norm, w_enc, w_dec, m_enc, m_dec,
    v_enc, v_dec, last_touched, norms, bf16, rounding_norms, adam,
):  # fmt: skip
    """Update both rows of feature j: add the gradient of the decoder norm, take a lazy Adam step, renormalise.

    Also updates the norm and the bfloat16 copy of the encoder row.
    """
    step, beta2 = adam[0], adam[3]
    kind = w_enc.dtype.type
    row = w_dec[j]
    if len(norm_gradient) and norm_gradient[j] != 0:
        scale = norm_gradient[j] / np.sqrt(dot(row, row))
        for t in range(len(row)):
            g_dec[t] += scale * row[t]
    if is_unit_norm:
        along = dot(g_dec, row)
        for t in range(len(row)):
            g_dec[t] -= along * row[t]
    decay = kind(math.pow(beta2, step - last_touched[j]))
    last_touched[j] = step
    _update_matrix_row(j, w_enc, m_enc, v_enc, g_enc, has_enc_gradient, decay, adam)
    _update_matrix_row(j, w_dec, m_dec, v_dec, g_dec, has_dec_gradient, decay, adam)
    if is_unit_norm:
        scale = kind(1) / np.sqrt(dot(row, row))
        for t in range(len(row)):
            row[t] *= scale
    norms[j] = np.sqrt(dot(w_enc[j], w_enc[j]))
    if len(rounding_norms):
        rounding_norms[j] = round_row_to_bf16(w_enc[j], bf16[j])


@reassociating
def update_rows(
    first, last, block, colptr, token, x, slopes, constant, values, live, residuals, scales, may_skip, norm_gradient,
    is_unit_norm, w_enc, w_dec, m_enc, m_dec, v_enc, v_dec, last_touched, norms, bf16, rounding_norms, adam,
    projections, input_gradient,
):  # fmt: skip
    """Update the rows of the features in blocks first … last − 1, `block` features each, one gradient row at a time.

    Per entry and reconstruction r: projection = scale_r·residual_r·d_j; ∂L/∂π = Σ_r slope_r·projection_r + constant.
    values, of the first `live` reconstructions: ∂L/∂d_j = Σ value·scale·residual. input_gradient [blocks, d] receives
    Σ_j ∂L/∂b_enc,j·W_enc,j of each block, with W_enc before the update.
    """
    d, zero = w_enc.shape[1], x.dtype.type(0)
    g_enc, g_dec, d_pre = np.empty(d, x.dtype), np.empty(d, x.dtype), np.empty(len(x), x.dtype)
    index, weight = np.empty(len(x), np.int32), np.empty(len(x), x.dtype)
    for j in range(first * block, min(last * block, len(w_enc))):
        start, n = colptr[j], colptr[j + 1] - colptr[j]
        if n == 0:
            continue
        prefetch_row(w_enc, j)
        prefetch_row(v_enc, j)
        prefetch_row(v_dec, j)
        has_dec_gradient, direction, tokens = False, w_dec[j], token[start : start + n]
        g_dec[:] = zero
        for q in range(n):
            d_pre[q] = constant[start + q] if len(constant) else zero
        for r in range(len(residuals)):
            slope, projection = slopes[r][start : start + n], projections[r][start : start + n]
            residual, scale, live_here, m = residuals[r], scales[r], r < live, 0
            for q in range(n):
                weight[m] = values[r][start + q] * scale if live_here else zero
                index[m] = tokens[q]
                is_on = weight[m] != 0
                along = zero
                if is_on or slope[q] != 0 or not may_skip[r]:
                    along = dot(residual[tokens[q]], direction)
                m += is_on
                projection[q] = scale * along
                d_pre[q] += slope[q] * projection[q]
            has_dec_gradient |= m > 0
            add_scaled_rows(g_dec, residual, index, weight, m)
        m, total = 0, 0.0
        for q in range(n):
            total += np.float64(d_pre[q])
            index[m], weight[m] = tokens[q], d_pre[q]
            m += d_pre[q] != 0
        has_enc_gradient = m > 0
        has_dec_gradient |= len(norm_gradient) > 0 and norm_gradient[j] != 0
        if not (has_enc_gradient or has_dec_gradient):
            continue
        g_enc[:] = zero
        add_scaled_rows(g_enc, x, index, weight, m)
        block_sum, d_bias = input_gradient[j // block], x.dtype.type(total)
        for t in range(d):
            block_sum[t] += d_bias * w_enc[j, t]
        _update_row(
            j, g_enc, g_dec, has_enc_gradient, has_dec_gradient, norm_gradient, is_unit_norm, w_enc, w_dec, m_enc,
            m_dec, v_enc, v_dec, last_touched, norms, bf16, rounding_norms, adam,
        )  # fmt: skip


@reassociating
def apply_row_gradients(
    first, last, features, g_enc, g_dec, touched, norm_gradient, is_unit_norm, w_enc, w_dec, m_enc, m_dec, v_enc, v_dec,
    last_touched, norms, bf16, rounding_norms, adam,
):  # fmt: skip
    """Apply given gradient rows [m, d] to the touched ones of `features` [m]; touched [m, 2]: in W_enc, in W_dec.

    norm_gradient: [M] or empty.
    """
    for c in range(first, last):
        j = features[c]
        if touched[c, 0] or touched[c, 1]:
            _update_row(
                j, g_enc[c], g_dec[c], touched[c, 0], touched[c, 1], norm_gradient, is_unit_norm, w_enc, w_dec, m_enc,
                m_dec, v_enc, v_dec, last_touched, norms, bf16, rounding_norms, adam,
            )  # fmt: skip
