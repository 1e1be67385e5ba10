// The curves of the trainings: L0, FVU and the thresholds against the step.

function setUpTraining() { // drawn like a panel
  const section = document.getElementById("training");
  if (!section) return null;
  const which = section.querySelector("select"), plots = [...section.querySelectorAll("[data-training]")];
  const none = section.querySelector(".no-thresholds");
  function draw(target, now = globalThis.Plotly) {
    if (!now) return;
    const shown = which.value.split(",").map((i) => data.training[Number(i)]), kind = target.dataset.training;
    const { traces, layout } = kind === "thresholds" ? thresholdCurves(shown) : trainingCurves(shown, kind);
    if (kind === "thresholds") { target.hidden = !traces.length; none.hidden = traces.length > 0; }
    if (!isDrawn(target)) target.replaceChildren();
    now.react(target, traces, layout, CONFIG);
  }
  const drawAll = () => plots.forEach((target) => draw(target));
  which.addEventListener("change", drawAll);
  return { drawAll, draw, plots };
}

function trainingCurves(records, key) {
  const known = records.filter((record) => record.lines.step);
  const traces = known.map((record) => ({
    ...trainingLine(record), x: record.lines.step, y: record.lines[key],
    hovertemplate: `<b>${plain(record.label)}</b><br>step %{x:,}<br>${METRICS[key].short} %{y:.3g}<extra></extra>`,
  }));
  const values = known.flatMap((record) => record.lines[key]).filter((v) => v > 0);
  const layout = { ...frame(), xaxis: stepAxis(known), yaxis: { ...line(), ...logAxis(values, { title: METRICS[key].name }) } };
  const requested = key === "l0" ? [...new Set(known.map((record) => record.requested).filter(FINITE))] : [];
  layout.shapes = requested.map((l0) => ({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: l0, y1: l0, layer: "below", line: { color: style("--soft"), width: 1, dash: "dot" } }));
  return { traces, layout };
}

function thresholdCurves(records) { // of one SAE the median with the middle half and the middle nine tenths, of several the medians
  const known = records.filter((record) => record.thresholds.step);
  const band = (record, low, high, alpha) => [low, high].map((key, i) => ({
    ...trainingLine(record), x: record.thresholds.step, y: record.thresholds[key], line: { width: 0 }, hoverinfo: "skip",
    ...(i ? { fill: "tonexty", fillcolor: `${colourOf(record.series)}${alpha}` } : {}),
  }));
  const traces = known.flatMap((record) => [
    ...(records.length === 1 ? [...band(record, "theta_05", "theta_95", "22"), ...band(record, "theta_25", "theta_75", "44")] : []),
    { ...trainingLine(record), x: record.thresholds.step, y: record.thresholds.theta_50, hovertemplate: `<b>${plain(record.label)}</b><br>step %{x:,}<br>median θ %{y:.3g}<extra></extra>` },
  ]);
  const values = traces.flatMap((trace) => trace.y).filter((v) => v > 0);
  return { traces, layout: { ...frame(), xaxis: stepAxis(known), yaxis: { ...line(), ...logAxis(values, { title: "threshold θ" }) } } };
}

function trainingLine(record) {
  return { type: "scatter", mode: "lines", name: plain(record.label), line: { color: colourOf(record.series), dash: data.series[record.series].dash, width: 1.6 } };
}

function stepAxis(records) { // to the last step of a finished training, whatever has been done of it
  return { ...line(), range: [0, Math.max(1, ...records.map((record) => record.steps))], title: titleOf({ title: "step" }), nticks: 6, separatethousands: true };
}

function logAxis(values, axis) {
  if (!values.length) return { title: titleOf(axis) };
  const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, 0]);
  const pad = 0.05 * Math.log10(high / low) + 0.02, range = [Math.log10(low) - pad, Math.log10(high) + pad];
  return { type: "log", range, title: titleOf(axis), ...ticks(range) };
}
