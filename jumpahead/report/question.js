// The form that asks a panel: a target metric and a value; the answer as a table and sentences.

const STEPS_OF_SLIDER = 1000; // as the template has it

function setUpQuestion(panel, box, state, redraw, choose) {
  const { target, value, slide } = box.querySelector("form").elements;
  const reply = () => {
    const number = parseValue(value.value, target.value, panel.width);
    value.setAttribute("aria-invalid", String(number === null));
    state.target = number === null ? null : { key: target.value, value: number };
    const answers = number === null ? [] : answerPanel(panel, data.level, target.value, number);
    state.crossings = answers.flatMap((one) => one.crossings.map((crossing) => ({ series: one.series, metrics: crossing.metrics })));
    box.querySelector(".unit-of-target").textContent = unitOf(panel, target.value);
    slide.setAttribute("aria-valuetext", `${METRICS[target.value].name} ${value.value}`);
    box.querySelector(".answer").replaceChildren(...(number === null
      ? [element("p", { class: "lead" }, `Type a number, such as 0.2 for a loss or 16 for an L0.${panel.width === null ? "" : " A number of features may be a share, such as 0.06%."}`)]
      : answerNodes(panel, target.value, number, answers, choose)));
    redraw();
  };
  const follow = () => { // the slider goes where the number is
    const number = parseValue(value.value, target.value, panel.width);
    if (number !== null) slide.value = String(sliderOf(panel, target.value, number));
  };
  const suggest = () => { value.value = suggestion(panel, target.value); follow(); };
  box.hidden = false;
  suggest();
  reply();
  box.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  value.addEventListener("input", () => { follow(); reply(); });
  const slid = oncePerFrame(reply);
  slide.addEventListener("input", () => { value.value = valueOfSlider(panel, target.value, Number(slide.value)); slid(); });
  target.addEventListener("change", () => { suggest(); reply(); });
}

function oncePerFrame(work) { // many events between two frames are one
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => { isDue = false; work(); });
  };
}

function sliderRange(panel, key) { // all that any series was measured at; logarithmic if it is above zero
  const m = KEYS.indexOf(key), ranges = panel.curves.map((one) => rangeOf(one.curve, m));
  const low = Math.min(...ranges.map((r) => r[0])), high = Math.max(...ranges.map((r) => r[1]));
  return { low, high, isLog: low > 0 && METRICS[key].format === "number" };
}

function sliderOf(panel, key, value) {
  const { low, high, isLog } = sliderRange(panel, key), on = (v) => (isLog ? Math.log(Math.max(v, 1e-12)) : v);
  return high > low ? Math.round(STEPS_OF_SLIDER * clip((on(value) - on(low)) / (on(high) - on(low)), 0, 1)) : 0;
}

function valueOfSlider(panel, key, step) { // three digits, and the ends as they were measured
  const { low, high, isLog } = sliderRange(panel, key), part = step / STEPS_OF_SLIDER;
  if (part === 0 || part === 1) return String(part === 0 ? low : high);
  const value = isLog ? Math.exp((1 - part) * Math.log(low) + part * Math.log(high)) : (1 - part) * low + part * high;
  return String(clip(Number(value.toPrecision(3)), low, high));
}

function unitOf(panel, key) {
  if (METRICS[key].format !== "count") return METRICS[key].unit;
  return panel.width === null ? "features" : "features, or a share such as 0.06%";
}

function parseValue(text, key, width) { // a number; a count of features also as a share, `0.06%`, unless widths differ (null)
  const trimmed = text.trim().replace(",", "."), isShare = trimmed.endsWith("%") && METRICS[key].format === "count" && width !== null;
  const digits = isShare ? trimmed.slice(0, -1).trim() : trimmed;
  if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(digits)) return null;
  return isShare ? (Number(digits) / 100) * width : Number(digits);
}

function suggestion(panel, key) { // a value that as many series as possible reach
  if (key === panel.fidelity && panel.suggestion !== null) return String(panel.suggestion);
  const m = KEYS.indexOf(key), ranges = panel.curves.map((one) => rangeOf(one.curve, m));
  const low = Math.max(...ranges.map((r) => r[0])), high = Math.min(...ranges.map((r) => r[1]));
  const middle = low > 0 && high > 0 ? Math.sqrt(low * high) : (low + high) / 2;
  return FINITE(middle) ? String(Number(middle.toPrecision(2))) : "";
}

function answerNodes(panel, key, value, answers, choose) {
  const shown = keysOf(panel).filter((other) => other !== key);
  const columns = ["Series", ...shown.map((other) => METRICS[other].short), "train with", "nearest SAE"];
  const units = ["", ...shown.map((other) => METRICS[other].unit), "", ""];
  const head = element("tr", {}, ...columns.map((text, i) =>
    element("th", { scope: "col", class: i === 0 || i >= columns.length - 2 ? "word" : "" }, text, element("span", { class: "unit" }, units[i]))));
  const rows = answers.flatMap((one) => (one.crossings.length
    ? one.crossings.map((crossing) => answerRow(one, crossing, shown, choose)) : [outsideRow(panel, one, key, shown.length + 2)]));
  const table = element("table", { class: "cards" }, element("thead", {}, head), element("tbody", {}, ...rows));
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answer per series" }, table);
  return [scroll, ...comparison(panel, answers, key), ...notes(panel, answers)];
}

function answerRow(one, crossing, shown, choose) {
  const cells = shown.map((key) => {
    const { value, low, high } = crossing.metrics[key];
    const share = SHARE_OF[key], lines = [typesetInterval(key, [low, high]), share ? typesetPercent(crossing.metrics[share].value) : ""].filter(Boolean);
    return element("td", { "data-metric": key, "data-label": METRICS[key].short }, typesetMetric(key, value), ...lines.map((text) => element("small", {}, text)));
  });
  const setting = typesetCoefficient(crossing.setting.kind, crossing.setting.value);
  const train = element("td", { class: "word", "data-label": "train with" }, setting, element("small", {}, crossing.lambda === null ? "" : `λ ends near ${typesetNumber(crossing.lambda)}`));
  const pick = element("button", { type: "button", class: "pick" }, crossing.nearest.label);
  pick.addEventListener("click", () => choose(crossing.nearest.index));
  const near = element("td", { class: "word near", "data-label": "nearest SAE" }, pick, element("small", {}, element("code", {}, crossing.nearest.path)));
  return element("tr", { "data-series": String(one.series) }, element("td", { class: "word" }, ...named(one.series)), ...cells, train, near);
}

function outsideRow(panel, one, key, span) {
  const other = key === "l0" ? panel.fidelity : "l0";
  const [low, high] = one.measured, end = one.end.metrics;
  const text = `${one.reach} the measured range, ${typesetInterval(key, [low, high])}; nearest end: ${METRICS[key].short} ${typesetMetric(key, end[key].value)}, ` +
    `${METRICS[other].name} ${typesetMetric(other, end[other].value)}, ${one.end.nearest.label}`;
  return element("tr", { "data-series": String(one.series) }, element("td", { class: "word" }, ...named(one.series)),
    element("td", { class: "outside", colspan: String(span) }, text));
}

function named(series) {
  return [document.querySelector(`.legend button[data-series="${series}"] .swatch`).cloneNode(true), ` ${data.series[series].title}`];
}

function comparison(panel, answers, key) { // in sentences, from differences within each replicate
  const { objective, best, differences, leftOut } = compareSeries(panel, answers, key, data.level);
  const title = (series) => data.series[series].title, { name, unit } = METRICS[objective];
  const useless = leftOut.map(({ series, fvu }) => `${title(series)} is left out: FVU ${typesetNumber(fvu)}, no better than the mean activation.`);
  if (!best || !differences.length) {
    const only = leftOut.length ? [best ? `Only ${title(best.series)} qualifies.` : "No series qualifies.", ...useless] : [];
    return only.length ? [element("p", { class: "compared" }, only.join(" "))] : [];
  }
  const parts = differences.map(({ series, more }) => {
    const range = FINITE(more.low) ? ` (${typesetInterval(objective, [more.low, more.high])})` : "", amount = `${typesetNumber(more.value)}${range} more`;
    return FINITE(more.low) && more.low > 0 ? `${title(series)} has ${amount}.`
      : `${title(series)} has ${amount}: the difference to ${title(best.series)} may be zero.`;
  });
  const claim = objective === "l0" ? "needs the fewest active features" : `has the lowest ${name}`, number = typesetNumber(best.values[0]);
  const head = `${title(best.series)} ${claim}: ${number}${objective === "l0" ? ` per ${data.unit.singular}` : unit && ` ${unit}`}.`;
  return [element("p", { class: "compared" }, [head, ...parts, ...useless].join(" "))];
}

function notes(panel, answers) {
  const texts = [];
  for (const one of answers) {
    const title = data.series[one.series].title, worst = Math.max(0, ...one.crossings.map((c) => c.relativeError));
    const beyond = Math.max(0, ...one.crossings.map((c) => c.beyond));
    if (one.crossings.length > 1) texts.push(`${title} is there ${one.crossings.length} times; the smallest L0 comes first.`);
    if (one.isSnap) texts.push(`${title} ends within 1 % of the target: these are the values of its end.`);
    if (beyond > (1 - data.level) / 2) texts.push(`${title}: ${typesetPercent(beyond)} of the resamples do not reach the target; the intervals stop at the measured range.`);
    if (worst > 0.05) texts.push(`${title}: the standard error of the loss is ${typesetPercent(worst)} of it here; evaluate on more text.`);
  }
  if (panel.curves.some((one) => !one.hasSeedWeights)) texts.push("These intervals cover the text only: frontier.json has no seed weights.");
  return texts.map((text) => element("p", { class: "lead" }, text));
}
