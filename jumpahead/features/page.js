"use strict";
// The page of features: a list, and one feature. Data files call jumpahead.receive. It sets text, never HTML.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("page");
const ROW = 44, BEFORE = 12, AFTER = 6, WINDOW = [20, 10]; // pixels; tokens shown around an example; tokens recorded

// ---------------------------------------------------------------------------------------------- small tools

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const whole = (n) => Math.round(n).toLocaleString("en-US");
const short = (x) => x === null || x === undefined ? "–" : String(Number(Number(x).toPrecision(3)));
function percent(share) {
  if (!share) return "0";
  const value = 100 * share;
  return value < 0.001 ? "<0.001 %" : `${value >= 10 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : value.toPrecision(2)} %`;
}
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");

// ---------------------------------------------------------------------------------------------- data files

const received = new Map(), waiting = new Map();
globalThis.jumpahead = Object.freeze({
  receive(name, value) {
    received.set(name, value);
    waiting.get(name)?.resolve(value);
    waiting.delete(name);
  },
});

function load(name, path) {
  if (received.has(name)) return Promise.resolve(received.get(name));
  if (!waiting.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => { entry.resolve = resolve; entry.reject = reject; });
    waiting.set(name, entry);
    const script = element("script", { src: path });
    script.addEventListener("error", () => { waiting.delete(name); entry.reject(new Error(`${path} cannot be read.`)); });
    script.addEventListener("load", () => script.remove());
    document.head.append(script);
  }
  return waiting.get(name).promise;
}

const number = (n) => String(n).padStart(4, "0");
const loadRecords = (sae, n) => load(`${sae}/${n}`, `${sae}/${number(n)}.js`);
const loadPassages = (n) => load(`text/${n}`, `text/${number(n)}.js`);

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

async function loadList(sae) {
  const list = await load(`${sae}/list`, `${sae}/list.js`);
  if (!list.search) {
    list.count = unpack(list.count, Uint32Array);
    list.max = unpack(list.max, Float32Array);
    list.score = unpack(list.score, Uint8Array);
    list.search = list.labels.map((label, i) => `${label}\u0001${list.words[i]}`.toLowerCase());
    list.bias = new Map(list.bias);
  }
  return list;
}

// ---------------------------------------------------------------------------------------------- the list

const FILTERS = {
  alive: { name: "all that fire", keep: (list, i) => list.count[i] > 0 },
  frequent: { name: "> 10 % of tokens", keep: (list, i, tokens) => list.count[i] > 0.1 * tokens },
  common: { name: "> 1 %", keep: (list, i, tokens) => list.count[i] > 0.01 * tokens },
  dead: { name: "never fired", keep: (list, i) => list.count[i] === 0 },
};
const ORDERS = {
  frequency: { name: "most frequent first", key: (list) => (i) => -list.count[i] },
  rare: { name: "rarest first", key: (list) => (i) => list.count[i] },
  max: { name: "largest activation first", key: (list) => (i) => -list.max[i] },
  score: { name: "clearest label first", key: (list) => (i) => (list.score[i] === 255 ? 1 : -list.score[i]) },
  bias: { name: "most bias-like first", key: (list) => (i) => -(list.bias.get(i) ?? -9) },
  number: { name: "by number", key: () => (i) => i },
};

function choose(list, tokens, { filter, order, query }) {
  const keep = FILTERS[filter].keep, found = [], words = query.toLowerCase();
  const asked = /^\d+$/.test(query.trim()) ? Number(query.trim()) : -1;
  for (let i = 0; i < list.count.length; i += 1)
    if (i === asked || (keep(list, i, tokens) && (words === "" || list.search[i].includes(words)))) found.push(i);
  const key = ORDERS[order].key(list), keys = Float64Array.from(list.count, (_, i) => key(i));
  found.sort((a, b) => keys[a] - keys[b] || a - b);
  return found;
}

class FeatureList {
  constructor(onOpen) {
    this.state = { filter: "alive", order: "frequency", query: "" };
    this.found = [];
    this.current = null;
    this.search = element("input", { type: "search", placeholder: "Search", "aria-label": "Search labels, tokens and numbers", spellcheck: "false" });
    this.order = element("select", { "aria-label": "Order" }, ...Object.entries(ORDERS).map(([key, { name }]) => element("option", { value: key }, name)));
    this.chips = element("div", { class: "chips", role: "group", "aria-label": "Features shown" });
    this.note = element("p", { class: "found soft", "aria-live": "polite" });
    this.rows = element("div", { class: "rows" });
    this.scroller = element("div", { class: "list", role: "navigation", "aria-label": "Features", tabindex: "-1" }, this.rows);
    this.node = element("div", { class: "side" }, element("div", { class: "controls" }, this.search, this.order, this.chips, this.note), this.scroller);
    this.onOpen = onOpen;
    this.search.addEventListener("input", () => { this.state.query = this.search.value; this.update(); });
    this.order.addEventListener("change", () => { this.state.order = this.order.value; this.update(); });
    this.scroller.addEventListener("scroll", () => this.draw());
    globalThis.addEventListener("resize", () => this.draw());
  }

  show(sae, list) {
    this.sae = sae;
    this.list = list;
    this.chips.replaceChildren(...Object.entries(FILTERS).map(([key, { name, keep }]) => {
      let count = 0;
      for (let i = 0; i < list.count.length; i += 1) count += keep(list, i, data.text.tokens);
      const button = element("button", { type: "button", "data-filter": key }, `${name} `, element("span", { class: "soft" }, whole(count)));
      button.addEventListener("click", () => { this.state.filter = key; this.update(); });
      return button;
    }));
    this.update();
  }

  update() {
    this.found = choose(this.list, data.text.tokens, this.state);
    for (const button of this.chips.children) button.setAttribute("aria-pressed", String(button.dataset.filter === this.state.filter));
    this.note.textContent = `${whole(this.found.length)} of ${whole(this.list.count.length)} features`;
    this.rows.style.height = `${ROW * this.found.length}px`;
    this.scroller.scrollTop = 0;
    this.draw();
  }

  draw() {
    if (!this.list) return;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 5);
    const last = Math.min(this.found.length, first + Math.ceil(this.scroller.clientHeight / ROW) + 12);
    const rows = [];
    for (let at = first; at < last; at += 1) rows.push(this.row(at));
    this.rows.replaceChildren(...rows);
  }

  row(at) {
    const i = this.found[at], list = this.list, bias = list.bias.get(i);
    const more = [`#${i}`, list.count[i] ? `max ${short(list.max[i])}` : "", list.score[i] === 255 ? "" : `score ${(list.score[i] / 100).toFixed(2)}`,
      bias === undefined || bias === null ? "" : `bias ${bias.toFixed(2)}`].filter(Boolean).join(" · ");
    const link = element("a", { class: "row", href: `#${this.sae}/${i}`, "aria-current": String(i === this.current) },
      element("span", { class: "share" }, percent(list.count[i] / data.text.tokens)),
      element("span", { class: "label" }, visible(list.labels[i]) || "never fires"), element("span", { class: "more" }, more));
    link.style.top = `${ROW * at}px`;
    return link;
  }

  mark(i) {
    this.current = i;
    const at = this.found.indexOf(i), top = ROW * at, { scrollTop, clientHeight } = this.scroller;
    if (at >= 0 && (top < scrollTop || top + ROW > scrollTop + clientHeight)) this.scroller.scrollTop = Math.max(0, top - clientHeight / 2);
    this.draw();
  }

  step(by) {
    const at = this.found.indexOf(this.current), next = this.found[at < 0 ? 0 : at + by];
    if (next !== undefined) this.onOpen(next);
  }
}

// ---------------------------------------------------------------------------------------------- examples

const tip = element("div", { class: "tip", hidden: "" });
document.body.append(tip);
root.addEventListener("mouseover", (event) => {
  const said = event.target.closest?.("[data-tip]");
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said.dataset.tip;
  const box = said.getBoundingClientRect();
  tip.style.left = `${Math.min(box.left, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${box.top > 30 ? box.top - 26 : box.bottom + 4}px`;
});

function tokenSpan(text, value, largest, isExpanded) {
  const shown = isExpanded ? text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥") : visible(text);
  const span = element("span", { "data-tip": value === undefined ? `${visible(text)}  not recorded here` : `${visible(text)}  ${short(value)}` }, shown);
  if (value === undefined) span.classList.add("unknown");
  else if (value > 0) span.style.setProperty("--heat", String(Math.min(1, 0.12 + 0.88 * value / largest)));
  return span;
}

function exampleNode([chunk, offset, value, others], largest) {
  const tokens = element("div", { class: "tokens" }, "…"), where = element("div", { class: "where" });
  const button = element("button", { type: "button", "aria-expanded": "false" }, "more");
  const node = element("li", { class: "example" }, element("div", { class: "value" }, short(value)), tokens, button, where);
  const values = new Map([[offset, value]]);
  for (let k = 0; k < others.length; k += 2) values.set(offset + others[k], others[k + 1]);
  let isExpanded = false;
  loadPassages(Math.floor(chunk / data.passages_per_file)).then((passages) => {
    const passage = passages[chunk];
    const draw = () => {
      const [first, last] = isExpanded ? [0, passage.tokens.length] : [Math.max(0, offset - BEFORE), Math.min(passage.tokens.length, offset + AFTER + 1)];
      const spans = [];
      for (let t = first; t < last; t += 1) {
        const isKnown = t >= offset - WINDOW[0] && t <= offset + WINDOW[1];
        const span = tokenSpan(passage.tokens[t], isKnown ? values.get(t) ?? 0 : undefined, largest, isExpanded);
        if (t === offset) span.classList.add("peak");
        spans.push(span);
      }
      tokens.replaceChildren(...spans);
      button.textContent = isExpanded ? "less" : "more";
      button.setAttribute("aria-expanded", String(isExpanded));
    };
    button.addEventListener("click", () => { isExpanded = !isExpanded; draw(); });
    where.textContent = `${passage.document}, token ${whole(passage.start + offset + 1)}`;
    draw();
  }).catch((error) => { tokens.textContent = error.message; });
  return node;
}

const exampleList = (examples, largest) => element("ol", { class: "examples" }, ...examples.map((one) => exampleNode(one, largest)));

// ---------------------------------------------------------------------------------------------- one feature

function histogramNode({ bin, counts }) {
  const width = 600, height = 120, most = Math.max(...counts), step = width / counts.length;
  const chart = svg("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of the activations" });
  counts.forEach((count, k) => {
    const tall = count ? Math.max(1.5, (height - 2) * count / most) : 0;
    const bar = svg("rect", { x: k * step, y: height - tall, width: Math.max(1, step - 1), height: tall });
    bar.setAttribute("data-tip", `${short(k * bin)} to ${short((k + 1) * bin)}: ${whole(count)} tokens`);
    chart.append(bar);
  });
  chart.append(svg("line", { x1: 0, y1: height, x2: width, y2: height }));
  const axis = element("div", { class: "axis" }, element("span", {}, "0"), element("span", {}, "activation"), element("span", {}, short(counts.length * bin)));
  return element("div", {}, chart, axis);
}

function logitTable(title, pairs) {
  const rows = pairs.map(([token, value]) => element("tr", {}, element("td", { class: "token" }, visible(token)), element("td", {}, short(value))));
  return element("div", {}, element("h4", {}, title), element("table", {}, element("tbody", {}, ...rows)));
}

function biasNode(bias) {
  if (bias.value === null) return element("div", { class: "verdict" }, element("p", {},
    `Bias-likeness cannot be told: removing the feature changes the loss by ${short(bias.zeroed)} ± ${short(bias.zeroed_se)} nats on the ${whole(bias.tokens)} tokens where it fires.`));
  const kept = Math.round(100 * Math.max(0, Math.min(1, bias.value)));
  const said = kept ? `where it fires, its mean alone keeps ${kept} % of its effect on the loss` : "where it fires, its mean keeps nothing of its effect on the loss";
  return element("div", { class: "verdict" },
    element("p", {}, element("b", {}, `Bias-likeness ${short(bias.value)}: `), `${said}.`),
    element("p", { class: "soft" }, `On ${whole(bias.tokens)} tokens where it fires, removing it raises the loss by ${short(bias.zeroed)} nats per token (± ${short(bias.zeroed_se)}), its mean in its place by ${short(bias.mean)}. A constant has bias-likeness 1: such a feature is a bias if it fires on most tokens, and an on/off signal if it is rarer.`));
}

function factList(record) {
  const facts = [
    ["fires on", `${percent(record.density ?? 0)} of tokens`], ["tokens", `${whole(record.count)} of ${whole(data.text.tokens)}`],
    ["largest activation", short(record.max)], ["mean where it fires", short(record.mean)], ["threshold", short(record.threshold)],
    ["encoder norm", short(record.encoder_norm)], ["decoder norm", short(record.decoder_norm)], ["encoder bias", short(record.bias)],
  ];
  return element("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== "–").map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function acrossTable(record) {
  const shown = new Set(data.saes.map((sae) => data.points[sae.number].name));
  const rows = record.across
    .map(([n, feature, cosine]) => ({ point: data.points[n], feature, cosine }))
    .sort((a, b) => a.point.series.localeCompare(b.point.series) || a.point.l0 - b.point.l0);
  if (!rows.length) return element("p", { class: "soft" }, data.points.length > 1 ? `Only the ${whole(data.matched_features)} most frequent features are looked for in other SAEs.` : "There is no other SAE at this site.");
  const body = rows.map(({ point, feature, cosine }) => element("tr", {},
    element("td", {}, point.title), element("td", {}, short(point.l0)), element("td", {}, short(point.delta_lm_loss)),
    element("td", {}, cosine.toFixed(2)), element("td", {}, shown.has(point.name) ? element("a", { href: `#${point.name}/${feature}` }, `#${feature}`) : `#${feature}`)));
  const head = element("tr", {}, ...["SAE", "L0", "delta LM loss", "cosine", "feature"].map((name) => element("th", { scope: "col" }, name)));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function scoreSentence(label) {
  if (label.score === null || label.score === undefined) return "Too few examples for a score.";
  const said = label.rule === "none" ? "No rule on single tokens tells where it fires" : "The label is a rule on single tokens";
  return `${said}: score ${label.score.toFixed(2)} on tokens that did not choose it (0.5 is chance, 1 is exact).`;
}

function featureNode(sae, record) {
  const parts = [
    element("h2", {}, `Feature ${record.index}: `, element("span", {}, visible(record.label.text))),
    element("p", { class: "soft" }, record.count ? scoreSentence(record.label) : "It fires on no token of the text."),
    factList(record),
  ];
  if (!record.count) return parts;
  if (record.bias_likeness) parts.push(biasNode(record.bias_likeness));
  parts.push(element("h3", {}, "Strongest activations"), element("p", { class: "soft" }, "In each context the token where it is strongest. Point at a token for its activation."), exampleList(record.top, record.max));
  if (record.positive_logits) parts.push(element("h3", {}, "Direct effect on the logits"), element("p", { class: "soft" }, "W_U · d, with the gain of the final norm, per unit of activation."),
    element("div", { class: "pair" }, logitTable("raises", record.positive_logits), logitTable("lowers", record.negative_logits)));
  parts.push(element("h3", {}, "Activations"), histogramNode(record.histogram));
  if (record.groups.length) {
    parts.push(element("h3", {}, "By size of the activation"), element("p", { class: "soft" }, "A random sample of its activations in four groups of equal size."));
    const names = ["largest quarter", "second quarter", "third quarter", "smallest quarter"];
    record.groups.forEach((group, k) => parts.push(element("h4", {}, `${names[k]}: ${short(group.low)} to ${short(group.high)}`), exampleList(group.examples, record.max)));
  }
  if (record.random.length) parts.push(element("h3", {}, record.groups.length ? "More random activations" : "Random activations"), exampleList(record.random, record.max));
  parts.push(element("h3", {}, "The same feature in other SAEs of the site"), element("p", { class: "soft" }, "The feature whose decoder row has the largest cosine with this one’s."), acrossTable(record));
  parts.push(element("h3", {}, "Nearest features of this SAE"), element("div", { class: "scroll" }, element("table", {}, element("tbody", {}, ...record.nearest.map(([feature, cosine]) => {
    const label = received.get(`${sae}/list`)?.labels[feature];
    return element("tr", {}, element("td", {}, element("a", { href: `#${sae}/${feature}` }, `#${feature}`), ` ${visible(label || "never fires")}`), element("td", {}, cosine.toFixed(2)));
  })))));
  return parts;
}

// ---------------------------------------------------------------------------------------------- the page

function saeSentence(sae) {
  const point = data.points[sae.number], tokens = `${whole(data.text.tokens)} held-out tokens of ${data.text.source}`;
  const parts = [point.site, `${whole(sae.width)} features`, `L0 ${short(point.l0 ?? sae.l0)}`];
  if (point.delta_lm_loss !== null && point.delta_lm_loss !== undefined) parts.push(`delta LM loss ${short(point.delta_lm_loss)}`);
  parts.push(tokens);
  const { measured, above_half: likely, asked } = sae.bias;
  if (asked) parts.push(measured ? `bias-likeness above 0.5: ${likely} of ${measured} frequent features` : `bias-likeness: none of ${asked} could be told`);
  return parts.join(" · ");
}

function showFeatures() {
  const byName = new Map(data.saes.map((sae) => [data.points[sae.number].name, sae]));
  const select = element("select", { "aria-label": "SAE" }, ...[...byName].map(([name, sae]) => element("option", { value: name }, data.points[sae.number].title)));
  const about = element("p", { class: "soft" }), view = element("main", { class: "feature", tabindex: "-1" });
  const list = new FeatureList((i) => { location.hash = `#${select.value}/${i}`; });
  const columns = element("div", { class: "columns" }, list.node, view);
  const header = element("header", { class: "header" }, element("h1", {}, `${data.name}: features`), select, about);
  root.append(header, columns);
  const fit = () => columns.style.setProperty("--top", `${header.offsetHeight}px`);
  globalThis.addEventListener("resize", fit);
  select.addEventListener("change", () => { location.hash = `#${select.value}`; });

  async function follow() {
    const [asked, feature] = decodeURIComponent(location.hash.slice(1)).split("/");
    const name = byName.has(asked) ? asked : select.value;
    select.value = name;
    about.textContent = saeSentence(byName.get(name));
    fit();
    const found = await loadList(name);
    if (list.sae !== name) list.show(name, found);
    const wanted = /^\d+$/.test(feature ?? "") && Number(feature) < found.count.length ? Number(feature) : null;
    columns.classList.toggle("is-open", wanted !== null);
    const index = wanted ?? list.found[0];
    if (index === undefined) return view.replaceChildren();
    list.mark(index);
    const block = Math.floor(index / data.records_per_file), records = await loadRecords(name, block);
    const record = records[index - block * data.records_per_file];
    const back = element("a", { class: "back", href: `#${name}` }, "← list"), link = element("a", { href: `#${name}/${index}` }, "link to this feature");
    view.replaceChildren(element("div", { class: "nav" }, back, link, element("span", { class: "soft keys" }, "keys: j, k next and previous · / search")), ...featureNode(name, record));
    view.scrollTop = 0;
    if (wanted !== null && columns.clientWidth <= 760) globalThis.scrollTo(0, 0);
    document.title = `Feature ${index}, ${data.points[byName.get(name).number].title}`;
    document.documentElement.dataset.shown = `${name}/${index}`;
    return undefined;
  }
  const followSafely = () => follow().catch((error) => view.replaceChildren(element("p", { role: "alert" }, error.message)));
  globalThis.addEventListener("hashchange", followSafely);
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches?.("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !isTyping) { event.preventDefault(); list.search.focus(); }
    if (isTyping && event.key === "Escape") event.target.blur();
    const by = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by && (!isTyping || (event.target === list.search && event.key.startsWith("Arrow")))) { event.preventDefault(); list.step(by); }
  });
  followSafely();
}

if (data.prompt) globalThis.addEventListener("DOMContentLoaded", () => showPrompt());
else showFeatures();

// ---------------------------------------------------------------------------------------------- a prompt

function showPrompt() {
  const { tokens, active, labels } = data.prompt, list = element("div", { "aria-live": "polite" });
  const largest = Math.max(...active.flat().map(([, value]) => value), 1e-9);
  const buttons = tokens.map((text, t) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, visible(text));
    button.style.setProperty("--heat", String(0.8 * (active[t][0]?.[1] ?? 0) / largest));
    button.addEventListener("click", () => open(t));
    return button;
  });
  function open(t) {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === t)));
    const rows = active[t].map(([feature, value]) => element("tr", {}, element("td", {}, `#${feature}`), element("td", {}, short(value)), element("td", { class: "token" }, visible(labels[feature] ?? ""))));
    list.replaceChildren(element("h3", {}, `${active[t].length} features fire on “${visible(tokens[t])}”`), element("table", {}, element("tbody", {}, ...rows)));
  }
  root.append(element("main", { class: "prompt" }, element("h1", {}, data.name), element("p", { class: "soft" }, data.prompt.about), element("div", { class: "tokens" }, ...buttons), list));
  const first = active.findIndex((found) => found.length);
  if (first >= 0) open(first);
  document.documentElement.dataset.shown = "prompt";
}
})();
