// Interpolation on measured curves, and answers to questions: the same arithmetic as jumpahead/frontier/curve.py.
//
//   values[r][i][m]   r = 0 the estimate, then one row per bootstrap replicate; i a point; m an index of KEYS, the first being L0
//
// A curve runs through its points in the order of L0. For a target y* between neighbours i and i+1 and a metric v,
//   t = (y* − y_i) / (y_{i+1} − y_i)      v = (1−t)·v_i + t·v_{i+1}      log where isLog and positive, else plain
// A replicate that does not reach the target stops at its nearest point. Nothing is extrapolated.

const SNAP = 0.01; // a target outside the measured range by at most this share of its end is answered with the end
const FINITE = Number.isFinite;
const data = JSON.parse(document.getElementById("data").textContent);
for (const point of data.panels.flatMap((panel) => panel.points)) { // storage/packed_numbers.py
  for (const key of Object.keys(point.bootstrap)) point.bootstrap[key] = unpackNumbers(point.bootstrap[key]);
  point.weights = point.weights ? unpackNumbers(point.weights) : [];
}
const METRICS = Object.fromEntries(data.metrics.map((one) => [one.key, one])); // the declarations of frontier.json
const KEYS = data.metrics.filter((one) => one.curve).map((one) => one.key); // the metrics on curves, L0 first
const SHARE_OF = Object.fromEntries(data.metrics.filter((one) => one.share_of).map((one) => [one.share_of, one.key]));
const SHARE_KEYS = new Set(Object.values(SHARE_OF));

function unpackNumbers({ first, step, codes }) { // 16 bits each, the low byte first
  const bytes = atob(codes);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    const code = bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1);
    return code === 65535 ? NaN : first + step * code;
  });
}

function roleOf(key) { return METRICS[key].curve; }

function keysOf(panel) { // the metrics on curves that were measured in the panel
  return KEYS.filter((key) => panel.points.some((point) => FINITE(point.metrics[key])));
}

function makeCurve(values, isLog) {
  const rows = values.map((points) => {
    const order = points.map((_, i) => i).sort((a, b) =>
      compare(points[a][0], points[b][0]) || compare(-points[a][1], -points[b][1]) || a - b);
    const sorted = order.map((i) => points[i]);
    const usesLog = isLog.map((log, m) => log && sorted.every((point) => point[m] > 0));
    const scaled = sorted.map((point) => point.map((v, m) => (usesLog[m] ? Math.log(v) : v)));
    return { order, sorted, usesLog, scaled };
  });
  return { values, rows };
}

function compare(a, b) { // NaN last
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return a < b ? -1 : a > b ? 1 : 0;
}

function clip(v, low, high) { return Math.min(Math.max(v, low), high); }

function rangeOf(curve, m) {
  const measured = curve.values[0].map((point) => point[m]);
  return [Math.min(...measured), Math.max(...measured)];
}

function atPoint(curve, i) {
  return { values: curve.values.map((points) => points[i]), left: i, right: i, t: 0, beyond: 0 };
}

function nearestEnd(curve, m, target) { // the point whose metric is nearest; of several, the one with the smallest L0
  const distance = (i) => Math.abs(curve.values[0][i][m] - target);
  return atPoint(curve, curve.rows[0].order.reduce((best, i) => (distance(i) < distance(best) ? i : best)));
}

function findPositions(curve, m, target) { // by increasing L0; none where the target lies outside the measured range
  const [low, high] = rangeOf(curve, m);
  if (!(low <= target && target <= high)) {
    const nearest = target < low ? low : high;
    return Math.abs(target - nearest) <= SNAP * Math.abs(nearest) ? [nearestEnd(curve, m, nearest)] : [];
  }
  if (curve.values[0].length === 1) return [atPoint(curve, 0)];
  return crossings(curve, m, target).map(([segment, t]) => positionAt(curve, m, target, segment, t));
}

function scaledTarget(row, m, target) {
  if (!row.usesLog[m]) return target;
  return target > 0 ? Math.log(target) : -Infinity;
}

function crossings(curve, m, target) {
  const row = curve.rows[0], last = row.sorted.length - 1, wanted = scaledTarget(row, m, target), found = [];
  for (let i = 0; i <= last; i++) {
    const here = row.sorted[i][m], next = i < last ? row.sorted[i + 1][m] : NaN;
    if (here === target) found.push(i < last ? [i, 0] : [i - 1, 1]);
    else if (i < last && next !== target && here < target !== next < target) {
      const a = row.scaled[i][m], b = row.scaled[i + 1][m];
      found.push([i, clip((wanted - a) / (b - a), 0, 1)]);
    }
  }
  return found;
}

function positionAt(curve, m, target, segment, t) {
  const estimate = curve.rows[0], here = between(estimate, segment, t)[0];
  let missed = 0;
  const values = curve.rows.map((row, r) => {
    const found = r === 0 ? [segment, t] : nearestCrossing(row, m, target, here);
    const [s, u] = found || nearestPoint(row, m, target), position = [...between(row, s, u)];
    if (found) position[m] = target;
    else missed += 1;
    return position;
  });
  const left = estimate.order[segment], right = estimate.order[segment + 1];
  const beyond = values.length > 1 ? missed / (values.length - 1) : 0;
  if (t === 0) return { values, left, right: left, t: 0, beyond };
  if (t === 1) return { values, left: right, right, t: 0, beyond };
  return { values, left, right, t, beyond };
}

function nearestCrossing(row, m, target, here) { // of a replicate: the crossing nearest in L0, if it has one
  const y = row.scaled.map((point) => point[m]), x = row.scaled.map((point) => point[0]), last = y.length - 1;
  const wanted = scaledTarget(row, m, target), near = row.usesLog[0] ? Math.log(here) : here;
  let best = null, distance = Infinity;
  for (let i = 0; i < last; i++) {
    if (!((y[i] - wanted) * (y[i + 1] - wanted) <= 0)) continue;
    const rise = y[i + 1] - y[i], run = x[i + 1] - x[i];
    const flat = run === 0 ? 0 : clip((near - x[i]) / run, 0, 1);
    const t = rise === 0 ? flat : clip((wanted - y[i]) / rise, 0, 1);
    const far = Math.abs(x[i] + t * run - near);
    if (best === null || far < distance) [best, distance] = [[i, t], far];
  }
  return best;
}

function nearestPoint(row, m, target) {
  const gaps = row.sorted.map((point) => Math.abs(point[m] - target)), last = gaps.length - 1;
  const stop = gaps.indexOf(Math.min(...gaps));
  return stop === last ? [last - 1, 1] : [Math.max(stop, 0), 0];
}

function between(row, segment, t) {
  const a = row.sorted[segment], b = row.sorted[segment + 1];
  if (t === 0) return a;
  if (t === 1) return b;
  return a.map((_, m) => {
    const v = (1 - t) * row.scaled[segment][m] + t * row.scaled[segment + 1][m];
    return clip(row.usesLog[m] ? Math.exp(v) : v, Math.min(a[m], b[m]), Math.max(a[m], b[m]));
  });
}

function estimateOf(values, level) { // values[r]: the estimate, and the central part of the replicates
  if (!FINITE(values[0])) return { value: null, low: null, high: null };
  const replicates = values.slice(1).filter(FINITE).sort((a, b) => a - b);
  if (replicates.length < 2) return { value: values[0], low: null, high: null };
  const low = quantile(replicates, (1 - level) / 2), high = quantile(replicates, (1 + level) / 2);
  return { value: values[0], low: Math.min(low, values[0]), high: Math.max(high, values[0]) };
}

function quantile(sorted, q) { // linear between order statistics, as numpy's default
  const position = q * (sorted.length - 1), i = Math.floor(position), next = Math.min(i + 1, sorted.length - 1);
  return sorted[i] + (position - i) * (sorted[next] - sorted[i]);
}

// ---------------------------------------------------------------------------------------------- the curves of a panel

function seriesCurves(panel) { // one per series; a setting is a point of its curve, the mean of its seeds
  const found = new Map();
  for (const point of panel.points) {
    if (!FINITE(point.metrics.l0) || !FINITE(point.metrics[panel.fidelity])) continue;
    if (!found.has(point.series)) found.set(point.series, new Map());
    const settings = found.get(point.series), key = `${point.setting.kind} ${point.setting.value}`;
    settings.set(key, [...(settings.get(key) || []), point]);
  }
  return [...found].sort((a, b) => a[0] - b[0]).map(([series, groups]) => {
    const settings = [...groups.values()], points = settings.flat();
    const replicates = Math.min(...points.map(replicatesOf));
    const rows = Array.from({ length: 1 + replicates }, (_, r) => settings.map((group) => meanOf(group, r, panel.widths[series])));
    return { series, settings, curve: makeCurve(rows, logScales(points, rows[0])), hasSeedWeights: points.every(isWeighted) };
  });
}

function replicatesOf(point) {
  const measured = KEYS.filter((key) => FINITE(point.metrics[key]));
  return Math.min(...measured.map((key) => (point.bootstrap[key] || []).length));
}

function isWeighted(point) { return point.is_only_seed || point.weights.length > 0; }

function meanOf(group, r, width) { // replicate r of a setting; its SAEs count as the replicate drew their seeds
  return KEYS.map((key) => {
    let mean = 0;
    for (const point of group) {
      const value = r === 0 ? point.metrics[key] : (point.bootstrap[key] || [])[r - 1];
      const weight = r === 0 || !point.weights.length ? 1 / group.length : point.weights[r - 1];
      mean += weight * (value === null || value === undefined ? NaN : value);
    }
    const { domain } = roleOf(key);
    return domain === "real" || Number.isNaN(mean) ? mean : clip(mean, 0, domain === "features" ? width : Infinity);
  });
}

function logScales(points, estimate) { // which metrics are interpolated in the logarithm, as declared
  const isSignificant = (point, key) => { // at least two standard errors above zero
    const value = point.metrics[key], error = point.errors[key];
    return FINITE(error) && value > 0 && value >= 2 * error;
  };
  const wantsLog = (key, scale) => scale === "log" || (scale === "log_if_significant" && points.every((point) => isSignificant(point, key)));
  return KEYS.map((key, m) => wantsLog(key, roleOf(key).scale) && estimate.every((point) => point[m] > 0));
}

// ---------------------------------------------------------------------------------------------- the answer

function answerPanel(panel, level, key, value) { // per series: the crossings of its curve with `value`, as Frontier.ask
  const m = KEYS.indexOf(key);
  return panel.curves.map((one) => {
    const { curve } = one, positions = findPositions(curve, m, value), [low, high] = rangeOf(curve, m);
    return {
      series: one.series,
      reach: positions.length ? "inside" : value < low ? "below" : "above",
      measured: [low, high],
      isSnap: positions.length > 0 && !(low <= value && value <= high), // an end within 1 % of the target
      crossings: positions.map((position) => crossingOf(panel, one, position, level)),
      end: positions.length ? null : crossingOf(panel, one, nearestEnd(curve, m, value), level),
    };
  });
}

function crossingOf(panel, one, position, level) {
  const metrics = {}, left = one.settings[position.left], right = one.settings[position.right];
  KEYS.forEach((key, m) => {
    metrics[key] = estimateOf(position.values.map((row) => row[m]), level);
    if (SHARE_OF[key]) metrics[SHARE_OF[key]] = estimateOf(position.values.map((row) => row[m] / panel.widths[one.series]), level);
  });
  const near = nearestSAE(one.settings.flat(), position.values[0][0]);
  return {
    metrics, nearest: near, replicates: position.values, beyond: position.beyond,
    setting: settingBetween(left[0].setting, right[0].setting, position.t, data.series[one.series].whole) || near.setting,
    lambda: left[0].setting.kind === "l0" && right[0].setting.kind === "l0" ? lambdaBetween(left, right, position.t) : null,
    relativeError: Math.max(0, ...[...left, ...right].map((p) => p.errors.delta_lm_loss / Math.abs(p.metrics.delta_lm_loss)).filter(FINITE)),
  };
}

function nearestSAE(points, l0) {
  const log = (v) => Math.log(Math.max(v, 1e-9)), gap = (point) => Math.abs(log(point.metrics.l0) - log(l0));
  return points.reduce((best, point) => (gap(point) < gap(best) ? point : best));
}

function settingBetween(left, right, t, isWhole) { // geometric in its value, whole or three digits; null where the kinds differ or are not known
  if (t === 0) return left;
  if (left.kind !== right.kind || left.kind === "measured") return null;
  const value = geometric(left.value, right.value, t);
  return { kind: left.kind, value: isWhole || left.kind === "k" ? Math.max(1, roundHalfEven(value)) : Number(value.toPrecision(3)) };
}

function geometric(a, b, t) {
  if (t === 0 || a === b) return a;
  return a > 0 && b > 0 ? Math.exp((1 - t) * Math.log(a) + t * Math.log(b)) : (1 - t) * a + t * b;
}

function roundHalfEven(v) { // as Python rounds
  const low = Math.floor(v);
  return v - low === 0.5 ? low + (low % 2) : Math.round(v);
}

function lambdaBetween(left, right, t) { // the λ that the controllers of a requested L0 ended with; null if an SAE has none
  const mean = (group) => {
    const values = group.map((point) => point.sparsity_coefficient.lambda);
    return values.every((v) => FINITE(v) && v > 0)
      ? Math.exp(values.reduce((sum, v) => sum + Math.log(v), 0) / values.length) : null;
  };
  const a = mean(left), b = mean(right);
  return a === null || b === null ? null : geometric(a, b, t);
}

function isUseless(panel, crossing) { // as _reasons_against: the mean activation has the FVU 1
  return panel.fidelity === "fvu" && crossing.metrics.fvu.value >= 1;
}

function compareSeries(panel, answers, key, level) { // the series with the smallest objective, and paired differences to it
  const m = KEYS.indexOf(roleOf(key).is_fidelity ? "l0" : panel.fidelity);
  const there = answers.filter((one) => one.crossings.length);
  const useful = (one) => one.crossings.filter((crossing) => !isUseless(panel, crossing));
  const reached = there.filter((one) => useful(one).length).map((one) => {
    const best = useful(one).reduce((a, b) => (b.replicates[0][m] < a.replicates[0][m] ? b : a));
    return { series: one.series, values: best.replicates.map((row) => row[m]) };
  }).sort((a, b) => a.values[0] - b.values[0]);
  const [best, ...others] = reached;
  const differences = others.map((other) => {
    const R = Math.min(other.values.length, best.values.length);
    return { series: other.series, more: estimateOf(other.values.slice(0, R).map((v, r) => v - best.values[r]), level) };
  });
  const leftOut = there.filter((one) => !useful(one).length).map((one) => ({ series: one.series, fvu: one.crossings[0].metrics.fvu.value }));
  return { objective: KEYS[m], best, differences, leftOut };
}
