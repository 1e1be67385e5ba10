// The figures of a panel. Everything that plotly is given as text goes through `plain`: it reads a little HTML in strings.

const SIZE = 9, CHOSEN = 15, PRINTED = 250; // px: marks, the chosen one, a figure on paper (as page.css has it)
const NORMAL_95 = 1.96; // standard errors in an interval, for metrics without resamples

function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function colourOf(series) { return style(`--series-${series}`); }

function coordinate(key, scale) { // a point's value, or with part 0 or 1 an end of its interval, times scale
  return (point, part) => {
    const value = part === undefined ? point.metrics[key] : intervalOf(point, key)[part];
    return FINITE(value) ? scale * value : null;
  };
}

function intervalOf(point, key) { // of metrics that are on no curve: from their standard error
  if (point.intervals[key] || roleOf(key) || SHARE_KEYS.has(key)) return point.intervals[key] || [];
  const value = point.metrics[key], error = point.errors[key];
  return FINITE(value) && FINITE(error) ? [value - NORMAL_95 * error, value + NORMAL_95 * error] : [];
}

function axisOfMetric(key, state) { // a count of features is drawn as a share of them, in per cent
  const shareKey = SHARE_OF[key], declared = METRICS[key], isRoot = Boolean(shareKey) && state.shareScale === "root";
  const place = isRoot ? (v) => Math.sqrt(Math.max(v, 0)) : (v) => v; // where a value is drawn
  if (shareKey) return { of: coordinate(shareKey, 100), title: "share of features", key, suffix: " %", place, isRoot, isShare: true };
  const title = declared.unit ? `${declared.name}, ${declared.unit}` : declared.title === declared.name ? declared.name : nameOf(key);
  const role = roleOf(key);
  return { of: coordinate(key, 1), title, key, isLog: Boolean(role) && role.scale !== "linear", place };
}

function nameOf(key) { // metrics of one name are told apart by their title
  const { name, title } = METRICS[key];
  return data.metrics.filter((one) => one.name === name).length > 1 ? title[0].toLowerCase() + title.slice(1) : name;
}

function axesOf(kind, panel, state) { // counts are drawn against the fidelity, all else against L0
  const shown = kind === "fvu" ? state.second : kind;
  return (SHARE_OF[shown] ? [panel.fidelity, shown] : ["l0", shown]).map((key) => axisOfMetric(key, state));
}

function scatter(panel, kind, state) {
  const [x, y] = axesOf(kind, panel, state);
  const points = panel.points.filter((p) => x.of(p) !== null && y.of(p) !== null);
  if (!points.length) return { traces: [], layout: frame() };
  const axes = [axisOf(points, x), axisOf(points, y)];
  const traces = panel.curves.flatMap((one) => [...(hasSeeds(one) ? [meanLine(one, x, y, state)] : []), traceOf(panel, one, x, y, points, axes, state)])
    .filter((trace) => trace.x.length);
  const layout = { ...frame(), xaxis: { ...line(), ...axes[0].layout }, yaxis: { ...line(), ...axes[1].layout } };
  layout.shapes = targetLines(panel, state, x, y, axes);
  return { traces, layout };
}

function traceOf(panel, one, x, y, points, axes, state) {
  const seriesStyle = data.series[one.series], colour = colourOf(one.series);
  const own = points.filter((p) => p.series === one.series).sort((a, b) => a.metrics.l0 - b.metrics.l0);
  const bars = (axis, which) => ({
    type: "data", symmetric: false, visible: true, color: colour, thickness: 1.2, width: 3,
    array: own.map((p) => reach(axis, p, 1, which)), arrayminus: own.map((p) => reach(axis, p, 0, which)),
  });
  const isBest = (p) => p.pareto_in[y.key] !== false; // of other metrics there is no such set: all marks are filled
  return {
    type: "scatter", mode: hasSeeds(one) ? "markers" : "lines+markers", name: plain(seriesStyle.title), meta: one.series,
    x: own.map((p) => x.place(x.of(p))), y: own.map((p) => y.place(y.of(p))), customdata: own.map((p) => p.index),
    hoverinfo: "text", hovertext: own.map((p) => hover(panel, p, y.key)), visible: !state.hidden.has(one.series),
    line: { color: colour, dash: seriesStyle.dash, width: 2 }, hoverlabel: { bordercolor: colour },
    marker: {
      color: colour, opacity: 1, line: { color: colour, width: 1.6 },
      symbol: own.map((p) => (isBest(p) ? seriesStyle.symbol : `${seriesStyle.symbol}-open`)),
      size: own.map((p) => (p.index === state.chosen ? CHOSEN : SIZE)),
    },
    error_x: bars(x, axes[0]), error_y: bars(y, axes[1]),
  };
}

function reach(axis, point, part, drawn) { // how far the interval reaches from the value; on a log axis, down to its edge
  const value = axis.of(point), end = axis.of(point, part);
  if (end === null) return 0;
  const inside = drawn.isLog && end <= 0 ? value * 1e-3 : end;
  return Math.max((part === 0 ? -1 : 1) * (axis.place(inside) - axis.place(value)), 0);
}

function meanLine(one, x, y, state) { // if settings have several seeds, the curve runs through their means
  const mean = (of) => one.settings.map((group) => group.map(of).filter((v) => v !== null)).map((values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null));
  const l0 = mean((p) => p.metrics.l0), order = l0.map((_, i) => i).sort((a, b) => l0[a] - l0[b]);
  const drawn = (axis) => mean((p) => axis.of(p)).map((v) => (v === null ? null : axis.place(v)));
  const [xs, ys] = [drawn(x), drawn(y)];
  return {
    type: "scatter", mode: "lines", meta: one.series, x: order.map((i) => xs[i]), y: order.map((i) => ys[i]), hoverinfo: "skip", visible: !state.hidden.has(one.series),
    line: { color: colourOf(one.series), dash: data.series[one.series].dash, width: 2 },
  };
}

function hasSeeds(one) { return one.settings.some((group) => group.length > 1); }

function axisOf(points, axis) { // its range, ticks at 1, 2 and 5; logarithmic if all values are positive
  const values = points.map((p) => axis.of(p)), isLog = Boolean(axis.isLog) && values.every((v) => v > 0);
  const ends = points.flatMap((p) => [axis.of(p, 0), axis.of(p, 1)]).filter((v) => v !== null && (!isLog || v > 0));
  const low = Math.min(...values, ...ends.map((v) => (isLog ? Math.max(v, Math.min(...values) / 2) : v)));
  const high = Math.max(...values, ...ends);
  if (isLog) {
    const pad = 0.05 * Math.log10(high / low) + 0.02, range = [Math.log10(low) - pad, Math.log10(high) + pad];
    return { isLog, range, layout: { type: "log", range, title: titleOf(axis), ...ticks(range) } };
  }
  if (axis.isShare) return shareAxis(axis, high);
  const floor = axis.isLog || low < 0 || low > 0.5 * high ? low : 0, pad = 0.06 * (high - floor) || 0.1 * Math.abs(high) || 1;
  const range = [floor - (floor === 0 ? pad / 2 : pad), high + pad];
  return { isLog, range, layout: { type: "linear", range, title: titleOf(axis), nticks: 7, zeroline: true, zerolinecolor: style("--rule") } };
}

function shareAxis(axis, high) { // from zero, with ticks at shares only: a mark at zero lies a little above the edge
  const top = axis.place(high || 1), range = [-0.04 * top, 1.06 * top], tickvals = shareTicks(high || 1, axis);
  const digits = (v) => Number(v.toPrecision(2)).toLocaleString("en", { maximumSignificantDigits: 2 });
  return {
    isLog: false, range,
    layout: { type: "linear", range, title: titleOf(axis), tickvals: tickvals.map(axis.place), ticktext: tickvals.map((v) => `${digits(v)}${NBSP}%`), zeroline: true, zerolinecolor: style("--rule") },
  };
}

function shareTicks(high, axis) { // 1, 2 and 5 times powers of ten where the axis is a root, else equal steps; 0 in any case
  if (!axis.isRoot) {
    const power = 10 ** Math.floor(Math.log10(high / 5)), step = [1, 2, 5, 10].find((n) => n * power >= high / 6) * power;
    return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
  }
  const kept = [];
  for (let power = Math.ceil(Math.log10(high)); power > Math.log10(high) - 5; power--)
    for (const digit of [5, 2, 1]) {
      const value = digit * 10 ** (power - 1), above = kept.length ? Math.sqrt(kept[kept.length - 1]) : Infinity;
      if (value <= high && above - Math.sqrt(value) >= 0.13 * Math.sqrt(high) && Math.sqrt(value) >= 0.1 * Math.sqrt(high)) kept.push(value);
    }
  return [0, ...kept.reverse()];
}

function titleOf(axis) { return { text: plain(axis.title), standoff: 8, font: { size: 13 } }; }

function ticks([from, to]) { // of a logarithmic axis: every 1, 2, 5 over one to three decades
  const span = to - from, values = [];
  const digits = span > 3.2 ? [1] : span > 1 ? [1, 2, 5] : span > 0.45 ? [1, 2, 3, 4, 5, 7] : [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
  for (let power = Math.floor(from); power <= Math.ceil(to); power++)
    for (const digit of digits) values.push(digit * 10 ** power);
  const tickvals = values.filter((v) => Math.log10(v) >= from && Math.log10(v) <= to);
  return tickvals.length > 1 ? { tickvals, ticktext: tickvals.map((v) => Number(v.toPrecision(2)).toLocaleString("en", { maximumSignificantDigits: 2 })) } : { nticks: 5 };
}

function targetLines(panel, state, x, y, axes) { // dotted lines at the target; where no axis is its own, where each curve meets it
  if (!state.target) return [];
  const { key, value } = state.target, line = { color: style("--soft"), width: 1.5, dash: "dot" };
  const scale = !SHARE_OF[key] ? 1 : panel.width === null ? NaN : 100 / panel.width; // of several widths a number of features is no one share
  const own = [x, y].flatMap((axis, i) => (axis.key === key && FINITE(scale) ? lineAt(axis, i, axes[i], value * scale, line) : []));
  if (x.key === key || y.key === key) return own;
  return state.crossings.filter((one) => !state.hidden.has(one.series)).flatMap((one) => {
    const at = one.metrics[x.key].value;
    return at === null ? [] : lineAt(x, 0, axes[0], at, { ...line, color: colourOf(one.series) });
  });
}

function lineAt(axis, i, drawn, value, line) {
  if (drawn.isLog && value <= 0) return [];
  const place = axis.place(value), at = drawn.isLog ? Math.log10(place) : place;
  if (at < drawn.range[0] || at > drawn.range[1]) return [];
  return [i === 0
    ? { type: "line", xref: "x", yref: "paper", x0: place, x1: place, y0: 0, y1: 1, line, layer: "below" }
    : { type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: place, y1: place, line, layer: "below" }];
}

function hover(panel, point, shown) { // short: it must not cover the figure; the rest is below, once the mark is chosen
  const line = (key) => {
    const share = SHARE_OF[key], range = intervalOf(point, key).length ? ` (${typesetInterval(key, intervalOf(point, key))})` : "";
    const text = typesetMetric(key, point.metrics[key]);
    return share ? `${METRICS[key].short}: ${text} features, ${typesetMetric(share, point.metrics[share])}` : `${METRICS[key].short} ${text}${key === "l0" ? "" : range}`;
  };
  const keys = [...new Set(["l0", panel.fidelity, shown])];
  return [`<b>${plain(point.label)}</b>`, ...keys.map((key) => plain(line(key)))].join("<br>");
}

function detailsOf(panel, point) { // of the chosen SAE: all that the page knows, in one line per kind
  const coefficients = Object.entries(point.sparsity_coefficient).filter(([, v]) => FINITE(v)).map(([k, v]) => typesetCoefficient(k, typesetNumber(v)));
  const line = (key) => {
    const { name, unit } = METRICS[key], share = SHARE_OF[key], interval = point.intervals[key], range = interval ? ` (${typesetInterval(key, interval)})` : "";
    if (!share) return `${name} ${typesetMetric(key, point.metrics[key])}${unit ? ` ${unit}` : ""}${range}`;
    return `${typesetMetric(key, point.metrics[key])} of ${panel.widths[point.series].toLocaleString("en")} ${name}, ${typesetMetric(share, point.metrics[share])}${range}`;
  };
  const seeds = `seed ${point.seeds[0]}, stream seed ${point.seeds[1]}${coefficients.map((text) => `; trained with ${text}`).join("")}`;
  return { title: `${point.label}${point.pareto ? ", Pareto-optimal" : ""}`, lines: [keysOf(panel).map(line).join("; "), seeds], path: point.path };
}

function histogram(panel, points, state, over) { // over: an SAE that is laid over the others, in the text's colour
  const known = [...points, ...(over ? [over] : [])].filter((p) => p.histogram && (p.histogram.counts || []).length);
  const traces = known.map((point) => {
    const isOver = point === over, { log10_edges: edges, counts } = point.histogram;
    const seriesStyle = isOver ? { ...data.series[point.series], dash: "dot" } : data.series[point.series], colour = isOver ? style("--ink") : colourOf(point.series);
    const percentages = edges.map((edge) => 100 * 10 ** edge);
    return {
      type: "scatter", mode: "lines", name: plain(over ? point.label : seriesStyle.title), meta: point.series, visible: isOver || !state.hidden.has(point.series),
      x: percentages, y: [...counts, counts[counts.length - 1]].map((n) => Math.max(n, FLOOR)),
      line: { color: colour, dash: seriesStyle.dash, width: 2, shape: "hv" },
      fill: known.length === 1 ? "tozeroy" : "none", fillcolor: `${colour}33`, hoverinfo: "text",
      hovertext: [...counts, 0].map((n, i) => (i < counts.length
        ? `${plain(point.label)}<br>${n.toLocaleString("en")} features fire on ${typesetNumber(percentages[i])} to ${typesetNumber(percentages[i + 1])} % of ${data.unit.plural}` : "")),
    };
  });
  const all = known.flatMap((p) => p.histogram.counts), edges = known.flatMap((p) => p.histogram.log10_edges.map((e) => e + 2));
  const used = known.flatMap((p) => p.histogram.counts.flatMap((n, i) => (n ? [p.histogram.log10_edges[i] + 2] : [])));
  const x = [Math.max(Math.min(...edges), Math.min(...used) - 0.25), 2], y = [Math.log10(FLOOR), Math.log10(Math.max(...all, 1)) + 0.15];
  const layout = {
    ...frame(),
    xaxis: { ...line(), type: "log", range: x, title: titleOf({ title: `frequency, % of ${data.unit.plural}` }), ...ticks(x) },
    yaxis: { ...line(), type: "log", range: y, title: titleOf({ title: "features" }), ...ticks([0, y[1]]) },
  };
  if (over) Object.assign(layout, { showlegend: true, legend: { x: 1, xanchor: "right", y: 1, bgcolor: "rgba(0,0,0,0)", font: { size: 12 } } });
  layout.shapes = [1, 10].map((at) => ({
    type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, layer: "below", line: { color: style("--soft"), width: 1 },
  }));
  layout.annotations = [1, 10].map((at) => ({
    xref: "x", yref: "paper", x: Math.log10(at), y: 1, yanchor: "bottom", showarrow: false, text: `${at} %`, font: { size: 12, color: style("--soft") },
  }));
  return { traces, layout };
}

function stackedBars(rows, kind) { // a bar per architecture and method, from top to bottom; a piece per stage
  const { stages } = data.efficiency, y = rows.map((_, i) => i), sums = rows.map((row) => row.stages.reduce((a, b) => a + b, 0));
  const isShare = kind === "share", words = (row, s, sum) => `${typesetNumber(row.stages[s])} ms, ${typesetPercent(sum ? row.stages[s] / sum : 0)} of the step`;
  const traces = stages.map((title, s) => ({
    type: "bar", orientation: "h", name: plain(title), y, width: 0.72,
    x: rows.map((row, i) => (isShare ? (sums[i] ? (100 * row.stages[s]) / sums[i] : 0) : row.stages[s])),
    marker: { color: style(`--stage-${s}`), line: { color: style("--paper"), width: 1 } },
    hoverinfo: "text", hovertext: rows.map((row, i) => [`<b>${plain(title)}</b>`, `${plain(row.title)}, ${plain(row.method)}`, words(row, s, sums[i])].join("<br>")),
    textposition: "none",
  }));
  const label = (row, i) => (i === 0 || rows[i - 1].title !== row.title ? `<b>${plain(row.title)}</b>  ` : "") + `${plain(row.method)}\u00a0`;
  const most = Math.max(...sums, 1e-9), layout = {
    ...frame(), barmode: "stack", bargap: 0.2,
    xaxis: { ...line(), range: [0, isShare ? 100 : 1.16 * most], title: titleOf({ title: isShare ? "% of the stages’ sum" : "ms per step" }), nticks: 6, separatethousands: true },
    yaxis: { ...line(), showgrid: false, ticks: "", range: [rows.length - 0.5, -0.5], tickvals: y, ticktext: rows.map(label), showticklabels: true },
  };
  layout.annotations = rows.flatMap((row, i) => {
    const text = row.skipped ? plain(row.skipped) : isShare ? null : typesetNumber(row.ms);
    return text === null ? [] : [{ x: row.skipped ? 0 : sums[i], y: i, text, showarrow: false, xanchor: "left", xshift: 4, font: { size: 12, color: style(row.skipped ? "--soft" : "--ink") } }];
  });
  return { traces, layout };
}

const FLOOR = 0.5; // where an empty bin lies on the logarithmic axis: its lower edge

function frame() { // what all figures share
  return {
    height: matchMedia("print").matches ? PRINTED : undefined,
    margin: { l: 58, r: 12, t: 18, b: 48 }, showlegend: false, hovermode: "closest", dragmode: isTouch() ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: style("--sans"), size: 13, color: style("--ink") },
    hoverlabel: { align: "left", bgcolor: style("--paper"), font: { family: style("--sans"), size: 12, color: style("--ink") } },
  };
}

function isTouch() { return matchMedia("(pointer: coarse)").matches; }

function line() {
  return {
    gridcolor: style("--grid"), linecolor: style("--soft"), showline: true, zeroline: false, ticks: "outside", ticklen: 4,
    tickcolor: style("--soft"), automargin: true,
  };
}

const CONFIG = {
  responsive: true, displaylogo: false, doubleClick: "reset", modeBarButtons: [["toImage", "resetScale2d"]], showTips: false,
  toImageButtonOptions: { format: "svg", filename: "jumpahead" },
};
