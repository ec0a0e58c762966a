// Elements, numbers, names, and the one tooltip. Text reaches the page as text nodes only: models wrote much of it.

const PAGE = JSON.parse(document.getElementById("page-data").textContent);
let DATA = PAGE.runs[0]; // the run that the sections below the comparison show
const SVG_NS = "http://www.w3.org/2000/svg";
const KNOWN_MODELS = Object.keys(PAGE.names); // base first, then each family, SFT before RL

/** Fill a node: attributes (on… are listeners, class and text as they read), then children; null children are skipped. */
function fill(node, attrs, kids) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const kid of kids.flat(3)) {
    if (kid !== null && kid !== undefined && kid !== false) node.append(kid);
  }
  return node;
}
const put = (node, ...kids) => { node.replaceChildren(); return fill(node, {}, kids); };
const el = (tag, attrs, ...kids) => fill(document.createElement(tag), attrs, kids);
const svg = (tag, attrs, ...kids) => fill(document.createElementNS(SVG_NS, tag), attrs, kids);
const byId = (id) => document.getElementById(id);

// Numbers.
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const pct = (x, digits = 1) => (isNumber(x) ? (100 * x).toFixed(digits) + "%" : "–");
const range = (s) => `${(100 * s.low).toFixed(1)}–${(100 * s.high).toFixed(1)}`;
const FORMATS = [0, 1, 2, 3].map((n) => new Intl.NumberFormat("en-US", { minimumFractionDigits: n, maximumFractionDigits: n }));
function num(x, digits) {
  if (!isNumber(x)) return x === null || x === undefined ? "–" : String(x);
  if (digits === undefined) {
    if (Number.isInteger(x)) digits = 0;
    else if (x !== 0 && Math.abs(x) < 0.001) return x.toExponential(1).replace("e-", "e−");
    else digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : Math.abs(x) >= 1 ? 2 : 3;
  }
  return FORMATS[digits].format(x).replace("-", "−");
}
function duration(s) {
  if (!isNumber(s)) return "–";
  if (s < 60) return num(s, s < 10 ? 1 : 0) + " s";
  const [h, m, rest] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60), Math.round(s % 60)];
  return h ? `${h} h ${m} min` : `${m} min ${rest} s`;
}
const plural = (n, word) => `${num(n)} ${word}${n === 1 ? "" : "s"}`;
const capital = (text) => text.replace(/^[a-z](?=[a-z])/, (c) => c.toUpperCase());
const words = (key) => capital(key.replace(/[_-]+/g, " "));

// Models: hue is the family (blue ASTRO, orange Direct, grey base), shape and fill the stage.
const nameOf = (model) => PAGE.names[model] || model;
const colour = (model) => `var(--m-${KNOWN_MODELS.includes(model) ? model : "other"})`;
const isHollow = (model) => !(model.endsWith("-rl") || model === "base");

/** A model's mark, centred at (x, y), inside an SVG. */
function mark(model, x, y, r = 5.5) {
  const style = `stroke:${colour(model)};fill:${isHollow(model) ? "var(--bg)" : colour(model)};stroke-width:2.5`;
  if (model === "base") return svg("rect", { x: x - r + 0.5, y: y - r + 0.5, width: 2 * r - 1, height: 2 * r - 1, rx: 1.5, style });
  return svg("circle", { cx: x, cy: y, r, style });
}
function diamond(model, x, y, r = 6) {
  const d = `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`;
  return svg("path", { d, style: `stroke:${colour(model)};fill:var(--bg);stroke-width:2;stroke-linejoin:round` });
}
const badge = (model, shape = mark) =>
  svg("svg", { class: "badge", width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, shape(model, 8, 8, shape === mark ? 5 : 5.5));

// The tooltip: rows of text, near the pointer, never outside the window.
const TIP = byId("tip");
function showTip(event, rows) {
  TIP.replaceChildren(
    ...rows.map((row) =>
      typeof row === "string"
        ? el("div", { text: row })
        : el("div", { class: "tip-row" }, row.mark, el("span", { text: row.label }), el("b", { text: row.value })),
    ),
  );
  TIP.hidden = false;
  const box = TIP.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const top = event.clientY + 18 + box.height > window.innerHeight ? event.clientY - box.height - 12 : event.clientY + 18;
  TIP.style.left = Math.max(8, left) + "px";
  TIP.style.top = Math.max(8, top) + "px";
}
const hideTip = () => { TIP.hidden = true; };
const tipOn = (node, rows) => {
  node.addEventListener("pointermove", (event) => showTip(event, rows()));
  node.addEventListener("pointerleave", hideTip);
  return node;
};
window.addEventListener("scroll", hideTip, { passive: true, capture: true });

/** Text with the fixed phrases of reflection and backtracking marked; nothing in it is read as markup. */
function marked(text) {
  const out = [];
  let rest = text;
  for (;;) {
    let first = null;
    for (const phrase of PAGE.phrases) {
      const at = rest.indexOf(phrase.text);
      if (at >= 0 && (!first || at < first.at)) first = { at, phrase };
    }
    if (!first) return [...out, rest];
    let end = first.at + first.phrase.text.length;
    if (first.phrase.to_end) {
      const line = rest.indexOf("\n", end);
      end = line < 0 ? rest.length : line;
    }
    out.push(rest.slice(0, first.at), el("mark", { class: first.phrase.kind, text: rest.slice(first.at, end) }));
    rest = rest.slice(end);
  }
}

/** Exclusive buttons; `choose(i)` is called with the chosen one. Returns the bar, with .select(i). */
function choices(label, names, choose, kind = "tabs") {
  const buttons = names.map((name, i) =>
    el("button", { type: "button", "aria-pressed": "false", onclick: () => bar.select(i) }, name));
  const bar = el("div", { class: kind, role: "group", "aria-label": label }, buttons);
  bar.select = (i) => {
    buttons.forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    choose(i);
  };
  return bar;
}
/** A list to pick from, with buttons for the one before and the one after. groups: [[heading, [[index, text]]]]. */
function picker(id, label, groups, count, choose, ...more) {
  let at = 0;
  const select = el("select", { id, onchange: () => bar.select(+select.value) }, groups.filter(([, options]) => options.length).map(([heading, options]) => {
    const items = options.map(([i, text]) => el("option", { value: String(i), text }));
    return heading ? el("optgroup", { label: heading }, items) : items;
  }));
  const order = [...select.options].map((o) => +o.value); // as the list shows them
  const step = (d, sign, name) => el("button", { type: "button", class: "quiet step-button", "aria-label": name,
    onclick: () => bar.select(order[(order.indexOf(at) + d + count) % count]) }, sign);
  const bar = el("div", { class: "picker" }, el("label", { for: id, text: label }), select,
    step(-1, "‹", `Previous ${label.toLowerCase()}`), step(1, "›", `Next ${label.toLowerCase()}`), more);
  bar.select = (i) => { at = i; select.value = String(i); choose(i); };
  return bar;
}

/** Call `draw(width)` when the width of a node has become another one. Not within the observer, which must not resize what it observes. */
function onWidth(node, draw) {
  let drawn = 0;
  new ResizeObserver(() => requestAnimationFrame(() => {
    const width = node.clientWidth;
    if (width < 40 || Math.abs(width - drawn) < 4) return;
    const first = drawn === 0;
    drawn = width;
    draw(width, first);
  })).observe(node);
}

/** One stop of the Tab key for many nodes: arrow keys move between them. `next(id, key)` gives the id to go to, or null. */
function rove(nodes, first, next) {
  const stop = (id) => nodes.forEach((node, key) => node.setAttribute("tabindex", key === id ? "0" : "-1"));
  for (const [id, node] of nodes) {
    node.addEventListener("focus", () => stop(id));
    node.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const to = next(id, event.key);
      if (nodes.has(to)) nodes.get(to).focus();
    });
  }
  stop(first);
}
const absent = (text) => el("p", { class: "absent", text });
