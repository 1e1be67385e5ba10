// The page's behaviour: sorting, choosing, asking, drawing. It sets text, never HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const WORDS = { delta_lm_loss: "delta LM loss", fvu: "FVU" }; // of what SAEs are compared by, as panel.py
const MISSING = "–", NBSP = "\u00a0", COUNTS = ["above_10pct", "above_1pct", "dead"];

// ---------------------------------------------------------------------------------------------- numbers, as numbers.py

function short(value) {
  if (!FINITE(value)) return MISSING;
  const size = Math.abs(value);
  let text = "0";
  if (size >= 999.5) text = Math.round(size).toLocaleString("en");
  else if (size >= 0.0001) text = size.toPrecision(3);
  else if (size > 0) text = size.toExponential(1);
  return value < 0 ? `−${text}` : text;
}

function percent(value) {
  if (!FINITE(value)) return MISSING;
  if (value < 0) return `−${percent(-value)}`;
  const size = 100 * value;
  if (size === 0) return `0${NBSP}%`;
  return `${size >= 9.95 ? size.toFixed(1) : decimals(size, 2)}${NBSP}%`;
}

function decimals(size, digits) { // significant digits without an exponent
  const power = Math.max(Math.floor(Math.log10(Number(size.toPrecision(digits)))), -6);
  return size.toFixed(digits - 1 - power);
}

function count(value) {
  if (!FINITE(value)) return MISSING;
  if (Math.abs(value - Math.round(value)) < 1e-9 || Math.abs(value) >= 99.95) return Math.round(value).toLocaleString("en");
  return value.toFixed(1);
}

function show(key, value) {
  if (key.startsWith("share_")) return percent(value);
  return COUNTS.includes(key) ? count(value) : short(value);
}

function showRange(key, [low, high]) {
  return FINITE(low) && FINITE(high) ? `${show(key, low)} to ${show(key, high)}` : "";
}

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

function compareCells(a, b, direction) { // numbers by value, words by letters; what is missing comes last either way
  const [x, y] = [a, b].map((cell) => cell.dataset.value);
  if (x === undefined || y === undefined) return direction * ((x === undefined) - (y === undefined));
  const [m, n] = [Number(x), Number(y)];
  return Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
}

// ---------------------------------------------------------------------------------------------- one panel

function isDrawn(target) { return target.classList.contains("js-plotly-plot"); }

function setUp(section) {
  const panel = data.panels[Number(section.dataset.panel)], ask = section.querySelector(".ask");
  if (!panel.points.length) return null;
  panel.points.forEach((point, index) => { point.index = index; });
  panel.curves = seriesCurves(panel);
  const state = { hidden: new Set(), chosen: null, asked: null }, which = section.querySelector(".which");
  const plots = [...section.querySelectorAll("[data-plot]")];

  function draw(target, now = globalThis.Plotly) {
    if (!now) return;
    const kind = target.dataset.plot;
    const shown = which.value.split(",").map((i) => panel.points[Number(i)]);
    const { traces, layout } = kind === "histogram" ? histogram(panel, shown, state) : scatter(panel, kind, state);
    const isNew = !isDrawn(target);
    if (isNew) target.replaceChildren();
    now.react(target, traces, layout, CONFIG);
    if (isNew && kind !== "histogram") target.on("plotly_click", (event) => choose(event.points[0].customdata));
  }
  const drawAll = () => plots.forEach((target) => draw(target));
  const drawAsked = () => plots.filter(isDrawn).filter((target) => target.dataset.plot !== "histogram").forEach((target) =>
    globalThis.Plotly.relayout(target, { shapes: scatter(panel, target.dataset.plot, state).layout.shapes }));

  function choose(index) {
    state.chosen = state.chosen === index ? null : index;
    for (const row of section.querySelectorAll("tr[data-point]")) {
      const isChosen = Number(row.dataset.point) === state.chosen;
      row.classList.toggle("chosen", isChosen);
      row.querySelector(".pick").setAttribute("aria-pressed", String(isChosen));
    }
    if (state.chosen !== null) which.value = String(state.chosen);
    drawAll();
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
  which.addEventListener("change", () => draw(section.querySelector("[data-plot=histogram]")));
  section.querySelectorAll("table.sortable").forEach(sortTable);
  setUpAsk(panel, ask, state, drawAsked, choose);
  return { drawAll, draw, plots };
}

// ---------------------------------------------------------------------------------------------- what a step costs

function setUpEfficiency() { // like a panel, as far as drawing goes
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

// ---------------------------------------------------------------------------------------------- the ask box

function setUpAsk(panel, box, state, redraw, choose) {
  const { target, value } = box.querySelector("form").elements;
  const reply = () => {
    const asked = parseAmount(value.value, target.value, panel.width);
    value.setAttribute("aria-invalid", String(asked === null));
    state.asked = asked === null ? null : { key: target.value, value: asked };
    box.querySelector(".unit-of-target").textContent = unitOf(target.value);
    box.querySelector(".answer").replaceChildren(...(asked === null
      ? [element("p", { class: "lead" }, "Type a number, such as 0.2 for a loss or 16 for an L0; a number of features may be a share, such as 0.06%.")]
      : answerNodes(panel, target.value, asked, choose)));
    redraw();
  };
  const suggest = () => { value.value = suggestion(panel, target.value); };
  box.hidden = false;
  suggest();
  reply();
  box.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  value.addEventListener("input", () => reply());
  target.addEventListener("change", () => { suggest(); reply(); });
}

function unitOf(key) {
  if (key === "l0") return `features per ${data.token}`;
  return COUNTS.includes(key) ? "features, or a share such as 0.06%" : data.metrics[key].unit;
}

function parseAmount(text, key, width) { // a number; a count of features also as a share, `0.06%`
  const trimmed = text.trim().replace(",", "."), isShare = trimmed.endsWith("%") && COUNTS.includes(key);
  const digits = isShare ? trimmed.slice(0, -1).trim() : trimmed;
  if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(digits)) return null;
  return isShare ? (Number(digits) / 100) * width : Number(digits);
}

function suggestion(panel, key) { // a value that as many series as possible reach
  if (key === panel.fidelity && panel.ask !== null) return String(panel.ask);
  const m = KEYS.indexOf(key), ranges = panel.curves.map((one) => rangeOf(one.curve, m));
  const low = Math.max(...ranges.map((r) => r[0])), high = Math.min(...ranges.map((r) => r[1]));
  const middle = low > 0 && high > 0 ? Math.sqrt(low * high) : (low + high) / 2;
  return FINITE(middle) ? String(Number(middle.toPrecision(2))) : "";
}

function answerNodes(panel, key, asked, choose) {
  const answers = answerPanel(panel, data.level, key, asked), shown = KEYS.filter((other) => other !== key && (hasLoss(panel) || other !== "delta_lm_loss"));
  const columns = ["Series", ...shown.map((other) => data.metrics[other].short), "train with", "nearest SAE"];
  const units = ["", ...shown.map((other) => (other === "l0" ? `features per ${data.token}` : data.metrics[other].unit)), "", ""];
  const head = element("tr", {}, ...columns.map((text, i) =>
    element("th", { scope: "col", class: i === 0 || i >= columns.length - 2 ? "word" : "" }, text, element("span", { class: "unit" }, units[i]))));
  const rows = answers.flatMap((one) => (one.crossings.length
    ? one.crossings.map((crossing) => answerRow(one, crossing, shown, choose)) : [outsideRow(panel, one, key, shown.length + 2)]));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answer per series" }, table);
  return [scroll, ...comparison(panel, answers, key), ...remarks(panel, answers)];
}

function answerRow(one, crossing, shown, choose) {
  const cells = shown.map((key) => {
    const { value, low, high } = crossing.metrics[key];
    const lines = [showRange(key, [low, high]), SHARES[key] ? percent(crossing.metrics[SHARES[key]].value) : ""].filter(Boolean);
    return element("td", { "data-metric": key }, show(key, value), ...lines.map((text) => element("small", {}, text)));
  });
  const { kind, value } = crossing.setting, setting = `${kind === "lambda" ? "λ" : kind} = ${value}`;
  const train = element("td", { class: "word" }, setting, element("small", {}, crossing.lambda === null ? "" : `λ ends near ${short(crossing.lambda)}`));
  const pick = element("button", { type: "button", class: "pick" }, crossing.nearest.name);
  pick.addEventListener("click", () => choose(crossing.nearest.index));
  const near = element("td", { class: "word near" }, pick, element("small", {}, element("code", {}, crossing.nearest.path)));
  return element("tr", { "data-series": String(one.series) }, element("td", { class: "word" }, ...named(one.series)), ...cells, train, near);
}

function outsideRow(panel, one, key, span) {
  const other = key === "l0" ? panel.fidelity : "l0", words = { ...WORDS, l0: "L0" };
  const [low, high] = one.measured, end = one.end.metrics;
  const text = `${one.reach} the measured range, ${showRange(key, [low, high])}; nearest end: ${data.metrics[key].short} ${show(key, end[key].value)}, ` +
    `${words[other]} ${show(other, end[other].value)}, ${one.end.nearest.name}`;
  return element("tr", { "data-series": String(one.series) }, element("td", { class: "word" }, ...named(one.series)),
    element("td", { class: "outside", colspan: String(span) }, text));
}

function named(series) {
  return [document.querySelector(`.legend button[data-series="${series}"] .swatch`).cloneNode(true), ` ${data.series[series].title}`];
}

function comparison(panel, answers, key) { // in a sentence, by differences within each replicate
  const { objective, best, differences } = compareSeries(panel, answers, key, data.level);
  if (!best || !differences.length) return [];
  const isL0 = objective === "l0", title = (series) => data.series[series].title;
  const parts = differences.map(({ series, more }) => {
    const range = FINITE(more.low) ? ` (${showRange(objective, [more.low, more.high])})` : "", amount = `${short(more.value)}${range} more`;
    return FINITE(more.low) && more.low > 0 ? `${title(series)} ${{ l0: "needs", delta_lm_loss: "loses", fvu: "has" }[objective]} ${amount}.`
      : `${title(series)}: ${amount}, an interval that includes zero, so this run does not tell it from ${title(best.series)}.`;
  });
  const head = `${title(best.series)} ${isL0 ? "needs the fewest active features" : `has the lowest ${WORDS[objective]}`}: ${short(best.cost[0])}${{ l0: ` per ${data.token}`, delta_lm_loss: " nats per token", fvu: "" }[objective]}.`;
  return [element("p", { class: "compared" }, [head, ...parts].join(" "))];
}

function remarks(panel, answers) { // what one should know about the answer of a series
  const texts = [];
  for (const one of answers) {
    const title = data.series[one.series].title, worst = Math.max(0, ...one.crossings.map((c) => c.relativeError));
    const beyond = Math.max(0, ...one.crossings.map((c) => c.beyond));
    if (one.crossings.length > 1) texts.push(`${title} is there ${one.crossings.length} times; the smallest L0 comes first.`);
    if (one.isSnap) texts.push(`${title} ends within 1 % of what was asked: these are the values of its end.`);
    if (beyond > (1 - data.level) / 2) texts.push(`${title}: ${percent(beyond)} of the resamples do not get there; the intervals stop at the measured range.`);
    if (worst > 0.05) texts.push(`${title}: the standard error of the loss is ${percent(worst)} of it here; evaluate on more text.`);
  }
  if (panel.curves.some((one) => !one.hasSeedWeights)) texts.push("These intervals cover the text only: frontier.json does not say how seeds were drawn.");
  return texts.map((text) => element("p", { class: "lead" }, text));
}

// ---------------------------------------------------------------------------------------------- start

async function unpackPlotly() { // gzip in base64; the policy admits exactly this script by its hash
  const packed = atob(document.getElementById("plotly").textContent), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(element("script", {}, text));
}

async function start() {
  const panels = [...document.querySelectorAll("section[data-panel]")].map(setUp).concat(setUpEfficiency()).filter(Boolean);
  const say = (text) => document.querySelectorAll(".plot .waiting").forEach((node) => { node.textContent = text; });
  globalThis.jumpahead = { data, answer: (i, key, value) => answerPanel(data.panels[i], data.level, key, value), short, percent, count };
  try {
    await unpackPlotly();
  } catch {
    say("This browser cannot unpack the figures (it lacks DecompressionStream); the tables below hold the same numbers.");
    return;
  }
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
  document.documentElement.dataset.drawn = "true";
}

start();
