// Numbers as text, the same as typeset_… in jumpahead/formatting.py; a test compares the two.

const MISSING = "–", NBSP = "\u00a0";

function typesetNumber(value) {
  if (!FINITE(value)) return MISSING;
  const size = Math.abs(value);
  let text = "0";
  if (size >= 999.5) text = Math.round(size).toLocaleString("en");
  else if (size >= 0.0001) text = size.toPrecision(3);
  else if (size > 0) text = size.toExponential(1);
  return value < 0 ? `−${text}` : text;
}

function typesetPercent(share) {
  if (!FINITE(share)) return MISSING;
  if (share < 0) return `−${typesetPercent(-share)}`;
  const size = 100 * share;
  if (size === 0) return `0${NBSP}%`;
  return `${size >= 9.95 ? size.toFixed(1) : withoutExponent(size, 2)}${NBSP}%`;
}

function withoutExponent(size, digits) { // significant digits
  const power = Math.max(Math.floor(Math.log10(Number(size.toPrecision(digits)))), -6);
  return size.toFixed(digits - 1 - power);
}

function typesetCount(value) {
  if (!FINITE(value)) return MISSING;
  if (Math.abs(value - Math.round(value)) < 1e-9 || Math.abs(value) >= 99.95) return Math.round(value).toLocaleString("en").replace("-", "−");
  return value.toFixed(1).replace("-", "−");
}

function typesetMetric(key, value) {
  return { number: typesetNumber, count: typesetCount, share: typesetPercent }[METRICS[key].format](value);
}

function typesetInterval(key, [low, high]) {
  return FINITE(low) && FINITE(high) ? `${typesetMetric(key, low)} to ${typesetMetric(key, high)}` : "";
}

function typesetCoefficient(name, value) { // a sparsity coefficient or setting: `λ = 0.0006`, `k = 32`
  if (name === "measured") return `measured L0 ${typesetNumber(value)}`; // of an SAE whose setting is not known
  return `${name === "lambda" ? "λ" : name} = ${value}`;
}
