// The page's behaviour: sorting, choosing, drawing. It sets text, never HTML.

// ---------------------------------------------------------------------------------------------- small tools

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function sortTable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector(".sort").addEventListener("click", () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => direction * compareCells(a.cells[column], b.cells[column], direction));
    body.append(...rows);
  }));
}

function compareCells(a, b, direction) { // numbers by value, words alphabetically; missing values last in both directions
  const [x, y] = [a, b].map((cell) => cell.dataset.value);
  if (x === undefined || y === undefined) return direction * ((x === undefined) - (y === undefined));
  const [m, n] = [Number(x), Number(y)];
  return Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
}

// ---------------------------------------------------------------------------------------------- all SAEs as a file

function tableOf(panel) { // a row per SAE, as Frontier.table
  const metrics = data.metrics.map((one) => one.key), errors = metrics.filter((key) => panel.points.some((point) => point.errors[key] !== undefined));
  const head = ["site", "width", "series", "setting", "value", "sae_seed", "stream_seed", ...metrics, ...metrics.flatMap((key) =>
    (panel.points.some((point) => point.intervals[key]) ? [`${key}_low`, `${key}_high`] : [])), ...errors.map((key) => `${key}_se`), "pareto", "path"];
  const valueOf = (point, column) => {
    const [, key, end] = /^(.*)_(low|high|se)$/.exec(column) || [];
    if (METRICS[column]) return point.metrics[column];
    if (key && METRICS[key]) return end === "se" ? point.errors[key] : (point.intervals[key] || [])[end === "low" ? 0 : 1];
    const fixed = { site: panel.site, width: panel.widths[point.series], series: data.series[point.series].name, setting: point.setting.kind, value: point.setting.value,
      sae_seed: point.seeds[0], stream_seed: point.seeds[1], pareto: point.pareto, path: point.path };
    return fixed[column];
  };
  return [head, ...panel.points.map((point) => head.map((column) => valueOf(point, column)))];
}

function csvOf(rows) { // RFC 4180; a cell that a spreadsheet would take for a formula is text
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function downloadCSV(panel) {
  const url = URL.createObjectURL(new Blob([csvOf(tableOf(panel))], { type: "text/csv" }));
  element("a", { href: url, download: `${document.title.split(":")[0]}-${panel.site}-${panel.width ?? "all"}.csv`.replaceAll(/[^\w.-]+/g, "_") }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// ---------------------------------------------------------------------------------------------- one panel

function isDrawn(target) { return target.classList.contains("js-plotly-plot"); }

function setUp(section) {
  const panel = data.panels[Number(section.dataset.panel)], ask = section.querySelector(".ask");
  if (!panel.points.length) return null;
  panel.points.forEach((point, index) => { point.index = index; });
  panel.curves = seriesCurves(panel);
  const state = { hidden: new Set(), chosen: null, target: null, crossings: [], shareScale: "root", second: "fvu" };
  const which = section.querySelector(".which"), over = section.querySelector(".over"), chosen = section.querySelector(".chosen-sae");
  const plots = [...section.querySelectorAll("[data-plot]")];

  function draw(target, now = globalThis.Plotly) {
    if (!now) return;
    const kind = target.dataset.plot;
    const shown = which.value.split(",").map((i) => panel.points[Number(i)]);
    const laid = over.value === "" ? null : panel.points[Number(over.value)];
    const { traces, layout } = kind === "histogram" ? histogram(panel, shown, state, laid) : scatter(panel, kind, state);
    const isNew = !isDrawn(target);
    if (isNew) target.replaceChildren();
    now.react(target, traces, layout, CONFIG);
    if (isNew && kind !== "histogram") target.on("plotly_click", (event) => choose(event.points[0].customdata));
  }
  const drawAll = () => plots.forEach((target) => draw(target));
  const drawTarget = () => plots.filter(isDrawn).filter((target) => target.dataset.plot !== "histogram").forEach((target) =>
    globalThis.Plotly.relayout(target, { shapes: scatter(panel, target.dataset.plot, state).layout.shapes }));

  function choose(index) {
    state.chosen = state.chosen === index ? null : index;
    for (const row of section.querySelectorAll("tr[data-point]")) {
      const isChosen = Number(row.dataset.point) === state.chosen;
      row.classList.toggle("chosen", isChosen);
      row.querySelector(".pick").setAttribute("aria-pressed", String(isChosen));
    }
    if (state.chosen !== null) which.value = String(state.chosen);
    describeChosen();
    drawAll();
  }

  function describeChosen() { // what does not fit beside a mark
    chosen.hidden = state.chosen === null;
    if (chosen.hidden) return chosen.replaceChildren();
    const { title, lines, path } = detailsOf(panel, panel.points[state.chosen]);
    return chosen.replaceChildren(element("b", {}, title), ...lines.map((text) => element("span", {}, text)), element("code", {}, path));
  }

  function setShareScale(scale) {
    state.shareScale = scale;
    plots.filter((target) => SHARE_OF[target.dataset.plot]).forEach((target) => draw(target));
  }

  for (const row of section.querySelectorAll("tr[data-point]"))
    row.querySelector(".pick").addEventListener("click", () => choose(Number(row.dataset.point)));
  for (const button of section.querySelectorAll(".legend button")) button.addEventListener("click", () => {
    const series = Number(button.dataset.series);
    if (!state.hidden.delete(series)) state.hidden.add(series);
    for (const twin of section.querySelectorAll(`.legend button[data-series="${series}"]`))
      twin.setAttribute("aria-pressed", String(!state.hidden.has(series)));
    drawAll();
  });
  for (const menu of [which, over]) menu.addEventListener("change", () => draw(section.querySelector("[data-plot=histogram]")));
  const scale = section.querySelector(".share-scale"), second = section.querySelector(".second");
  scale.addEventListener("change", () => setShareScale(scale.value));
  second.addEventListener("change", () => { state.second = second.value; draw(section.querySelector("[data-plot=fvu]")); });
  section.querySelector(".csv").addEventListener("click", () => downloadCSV(panel));
  section.querySelectorAll("table.sortable").forEach(sortTable);
  setUpQuestion(panel, ask, state, drawTarget, choose);
  return { drawAll, draw, plots };
}

// ---------------------------------------------------------------------------------------------- what a step costs

function setUpEfficiency() { // drawn like a panel
  const section = document.getElementById("efficiency");
  if (!section || !data.efficiency.shapes.length) return null;
  const which = section.querySelector("select"), plots = [...section.querySelectorAll("[data-efficiency]")];
  function draw(target, now = globalThis.Plotly) {
    if (!now) return;
    const { traces, layout } = stackedBars(data.efficiency.shapes[which ? Number(which.value) : 0], target.dataset.efficiency);
    if (!isDrawn(target)) target.replaceChildren();
    now.react(target, traces, layout, CONFIG);
  }
  const drawAll = () => plots.forEach((target) => draw(target));
  if (which) which.addEventListener("change", drawAll);
  return { drawAll, draw, plots };
}

// ---------------------------------------------------------------------------------------------- start

async function unpackPlotly() { // gzip in base64; the policy admits exactly this script by its hash
  const packed = atob(document.getElementById("plotly").textContent), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(element("script", {}, text));
}

async function start() {
  const panels = [...document.querySelectorAll("section[data-panel]")].map(setUp).concat(setUpTraining(), setUpEfficiency()).filter(Boolean);
  const say = (text) => document.querySelectorAll(".plot .waiting").forEach((node) => { node.textContent = text; });
  globalThis.jumpahead = { data, answer: (i, key, value) => answerPanel(data.panels[i], data.level, key, value), csv: (i) => csvOf(tableOf(data.panels[i])), typesetNumber, typesetPercent, typesetCount };
  performance.mark("answered");
  try {
    await unpackPlotly();
  } catch {
    say("This browser cannot unpack the figures (it lacks DecompressionStream); the tables below hold the same numbers.");
    return;
  }
  performance.mark("unpacked");
  const later = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    later.unobserve(entry.target);
    panels.forEach((panel) => { if (panel.plots.includes(entry.target)) panel.draw(entry.target); });
  }), { rootMargin: "600px" });
  panels.forEach((panel, i) => panel.plots.forEach((target) => (i === 0 ? panel.draw(target) : later.observe(target))));
  const redraw = () => panels.forEach((panel) => panel.drawAll());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", () => { // other colours, other widths
    redraw();
    panels.forEach((panel) => panel.plots.forEach((target) => globalThis.Plotly.Plots.resize(target)));
  });
  performance.mark("drawn");
  document.documentElement.dataset.drawn = "true";
}

start();
