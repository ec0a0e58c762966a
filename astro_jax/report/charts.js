// Charts as SVG, redrawn when their width changes so that text keeps its size.

/** About `count` round numbers that cover [low, high]. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => raw <= m * power * 1.0001);
  const out = [];
  for (let i = Math.floor(low / step + 1e-9); i * step <= high + step * (1 - 1e-9); i++) out.push(+(i * step).toPrecision(12));
  return out;
}

/** A figure: title, legend, drawing, note. `draw(width)` returns the SVG. */
function figure(title, draw, { legend, note, label } = {}) {
  const holder = el("div", { class: "plot" });
  const fig = el("figure", {}, title && el("figcaption", { text: title }), legend, holder, note && el("p", { class: "note", text: note }));
  onWidth(holder, (width) => {
    const chart = draw(width);
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", label || title);
    holder.replaceChildren(chart);
  });
  return fig;
}

/** A frame with axes: scales x() and y(), grid, ticks and axis titles. Domains are widened to round numbers. */
function frame(width, height, x, y) {
  const pad = { left: 8, right: x.right || 14, top: 26, bottom: 40 };
  const yTicks = ticks(y.low, y.high, y.count || 4);
  const yText = yTicks.map((t) => y.format(t));
  pad.left += Math.max(...yText.map((t) => t.length)) * 6.6 + 4;
  const xTicks = x.exact ? ticks(x.low, x.high, Math.max(2, Math.floor(width / 95))).filter((t) => t >= x.low && t <= x.high)
    : ticks(x.low, x.high, Math.max(2, Math.floor(width / 95)));
  const [x0, x1] = x.exact ? [x.low, x.high] : [xTicks[0], xTicks.at(-1)];
  const [y0, y1] = [yTicks[0], yTicks.at(-1)];
  const right = width - pad.right;
  const bottom = height - pad.bottom;
  const sx = (v) => pad.left + ((v - x0) / (x1 - x0 || 1)) * (right - pad.left);
  const sy = (v) => bottom - ((v - y0) / (y1 - y0 || 1)) * (bottom - pad.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
  yTicks.forEach((t, i) => root.append(
    svg("line", { class: t === y0 ? "axis" : "grid", x1: pad.left, x2: right, y1: sy(t), y2: sy(t) }),
    svg("text", { class: "tick", x: pad.left - 7, y: sy(t) + 4, "text-anchor": "end", text: yText[i] })));
  xTicks.forEach((t) => root.append(
    svg("line", { class: "axis", x1: sx(t), x2: sx(t), y1: bottom, y2: bottom + 4 }),
    svg("text", { class: "tick", x: sx(t), y: bottom + 17, "text-anchor": "middle", text: x.format(t) })));
  root.append(
    svg("text", { class: "axis-title", x: 0, y: 12, text: y.title }),
    svg("text", { class: "axis-title", x: right, y: height - 5, "text-anchor": "end", text: x.title }));
  return { root, sx, sy, left: pad.left, right, top: pad.top, bottom };
}

/** The centred mean over `w` neighbours. */
function smooth(ys, w) {
  const half = Math.floor(w / 2);
  return ys.map((_, i) => {
    const near = ys.slice(Math.max(0, i - half), i + half + 1).filter(isNumber);
    return near.length ? near.reduce((a, b) => a + b, 0) / near.length : null;
  });
}
function linePath(xs, ys, f) {
  let pen = "M";
  return xs.map((x, i) => {
    if (!isNumber(ys[i])) { pen = "M"; return ""; }
    const at = `${pen}${f.sx(x).toFixed(1)} ${f.sy(ys[i]).toFixed(1)}`;
    pen = "L";
    return at;
  }).join("");
}
const extent = (values) => values.reduce(([a, b], v) => (isNumber(v) ? [Math.min(a, v), Math.max(b, v)] : [a, b]), [Infinity, -Infinity]);
const legendOf = (items) => el("ul", { class: "legend" }, items.map(([icon, text]) => el("li", {}, icon, text)));
const lineIcon = (model, stroke = colour(model)) => svg("svg", { class: "badge", width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" },
  svg("path", { d: "M1 6H25", class: "series" + (model.startsWith("direct") ? " dashed" : ""), style: `stroke:${stroke}` }));

const hue = (s) => s.colour || colour(s.model); // of a series

/** Curves over steps: pale for each point, bold for their moving mean. series: [{model, xs, ys, every}]. */
function curves(title, series, { unit, format, zero = true, note, height = 230 } = {}) {
  series = series.filter((s) => s.ys.some(isNumber));
  if (!series.length) return null;
  const draw = (width) => {
    const [xLow, xHigh] = extent(series.flatMap((s) => s.xs));
    const [yLow, yHigh] = extent(series.flatMap((s) => s.ys));
    const flat = yHigh === yLow ? Math.abs(yHigh) || 1 : 0;
    const f = frame(width, height, { low: xLow, high: Math.max(xHigh, xLow + 1), exact: true, title: "step", format: (v) => num(v, 0) },
      { low: zero && yLow > 0 ? 0 : yLow, high: yHigh + flat, title: unit, format });
    for (const s of series) {
      const style = `stroke:${hue(s)}`;
      if (s.window > 1) f.root.append(svg("path", { class: "raw", d: linePath(s.xs, s.ys, f), style }));
      f.root.append(svg("path", { class: "series" + (s.model.startsWith("direct") ? " dashed" : ""), d: linePath(s.xs, s.mean, f), style }));
    }
    return hoverSteps(f, series, format);
  };
  for (const s of series) {
    s.window = s.ys.length < 24 ? 1 : 2 * Math.round(s.ys.length / 40) + 1;
    s.mean = smooth(s.ys, s.window);
  }
  return figure(title, draw, { note });
}

/** A cross-hair that follows the pointer and shows each curve's value at the nearest step. */
function hoverSteps(f, series, format) {
  const rule = svg("line", { class: "rule", y1: f.top, y2: f.bottom, visibility: "hidden" });
  const dots = series.map((s) => svg("circle", { r: 4, visibility: "hidden", style: `fill:${hue(s)};stroke:var(--bg);stroke-width:1.5` }));
  const area = svg("rect", { class: "hit", x: f.left, y: f.top, width: f.right - f.left, height: f.bottom - f.top });
  const hide = () => { [rule, ...dots].forEach((n) => n.setAttribute("visibility", "hidden")); hideTip(); };
  area.addEventListener("pointermove", (event) => {
    const box = f.root.getBoundingClientRect();
    const px = (event.clientX - box.left) * (f.root.viewBox.baseVal.width / box.width);
    const nearest = series.map((s) => s.xs.reduce((best, x, i) => (Math.abs(f.sx(x) - px) < Math.abs(f.sx(s.xs[best]) - px) ? i : best), 0));
    const rows = [`step ${num(series[0].xs[nearest[0]], 0)}`];
    series.forEach((s, j) => {
      const i = nearest[j];
      if (!isNumber(s.mean[i])) return;
      dots[j].setAttribute("cx", f.sx(s.xs[i]));
      dots[j].setAttribute("cy", f.sy(s.mean[i]));
      dots[j].setAttribute("visibility", "visible");
      const mean = s.window > 1 ? ` (mean ${format(s.mean[i], true)})` : "";
      rows.push({ mark: badge(s.model), label: s.name || nameOf(s.model), value: format(s.ys[i], true) + mean });
    });
    const x = f.sx(series[0].xs[nearest[0]]);
    rule.setAttribute("x1", x);
    rule.setAttribute("x2", x);
    rule.setAttribute("visibility", "visible");
    showTip(event, rows);
  });
  area.addEventListener("pointerleave", hide);
  f.root.append(rule, ...dots, area);
  return f.root;
}

/** Points of several models. series: [{model, xs, ys, steps}], later steps darker. */
function scatter(title, series, { x, y, note, height = 230 }) {
  const draw = (width) => {
    const [xLow, xHigh] = extent(series.flatMap((s) => s.xs));
    const [yLow, yHigh] = extent(series.flatMap((s) => s.ys));
    const f = frame(width, height, { ...x, low: xLow, high: xHigh === xLow ? xLow + 1 : xHigh }, { ...y, low: yLow, high: yHigh === yLow ? yLow + 0.1 : yHigh });
    for (const s of series) {
      s.xs.forEach((vx, i) => {
        if (!isNumber(vx) || !isNumber(s.ys[i])) return;
        const fade = 0.25 + 0.6 * (i / Math.max(1, s.xs.length - 1));
        const dot = svg("circle", { cx: f.sx(vx), cy: f.sy(s.ys[i]), r: 3.4, style: `fill:${colour(s.model)};fill-opacity:${fade.toFixed(2)}` });
        f.root.append(tipOn(dot, () => [`${nameOf(s.model)}, step ${num(s.steps[i], 0)}`,
          { label: x.title, value: x.format(vx, true) }, { label: y.title, value: y.format(s.ys[i], true) }]));
      });
    }
    return f.root;
  };
  return figure(title, draw, { note });
}

/** Points with vertical intervals, arrows between them, and a label beside each. points: [{model, x, score, label, short, shape}]. */
function intervals(points, arrows, { x, y, height = 380 }) {
  return (width) => {
    const [xLow, xHigh] = extent(points.map((p) => p.x));
    const spread = xHigh - xLow || xHigh || 1;
    const [yLow, yHigh] = extent(points.flatMap((p) => [p.score.low, p.score.high]));
    const f = frame(width, height, { ...x, low: Math.max(0, xLow - 0.12 * spread), high: xHigh + 0.12 * spread },
      { ...y, low: yLow, high: yHigh, count: 6 });
    const at = Object.fromEntries(points.map((p) => [p.key, [f.sx(p.x), f.sy(p.score.mean)]]));
    for (const [from, to] of arrows) if (at[from] && at[to]) f.root.append(arrow(at[from], at[to], colour(to)));
    for (const p of points) f.root.append(whisker(p, at[p.key][0], f));
    for (const p of points) {
      const node = svg("g", {}, svg("circle", { class: "hit", cx: at[p.key][0], cy: at[p.key][1], r: 14 }), p.shape(p.model, ...at[p.key], 6.5));
      f.root.append(tipOn(node, () => [p.label, { label: "accuracy", value: pct(p.score.mean) },
        { label: "95% interval", value: range(p.score) + "%" }, { label: x.title, value: num(p.x, 0) }]));
    }
    placeLabels(f, points, at, arrows);
    return f.root;
  };
}
function whisker(p, x, f) {
  const [low, high] = [f.sy(p.score.low), f.sy(p.score.high)];
  return svg("path", { class: "whisker", d: `M${x} ${low}V${high}M${x - 4} ${low}h8M${x - 4} ${high}h8`, style: `stroke:${colour(p.model)}` });
}
/** A straight arrow that stops short of both marks. */
function arrow([x0, y0], [x1, y1], stroke) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 34) return svg("g", {});
  const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length];
  const [ax, ay, bx, by] = [x0 + 11 * ux, y0 + 11 * uy, x1 - 13 * ux, y1 - 13 * uy];
  const head = `M${bx - 7 * ux - 4 * uy} ${by - 7 * uy + 4 * ux}L${bx} ${by}L${bx - 7 * ux + 4 * uy} ${by - 7 * uy - 4 * ux}`;
  return svg("path", { class: "arrow", d: `M${ax} ${ay}L${bx} ${by}${head}`, style: `stroke:${stroke}` });
}
/** Each label goes to the first place beside its mark that covers no other mark, whisker, arrow or label. */
function placeLabels(f, points, at, arrows) {
  const taken = points.flatMap((p) => {
    const [x, y] = at[p.key];
    return [[x - 9, y - 9, x + 9, y + 9], [x - 4, f.sy(p.score.high), x + 4, f.sy(p.score.low)]];
  });
  for (const [from, to] of arrows.filter(([a, b]) => at[a] && at[b])) {
    const [[x0, y0], [x1, y1]] = [at[from], at[to]];
    for (let t = 0.08; t < 0.95; t += 0.02) taken.push([x0 + t * (x1 - x0) - 1, y0 + t * (y1 - y0) - 1, x0 + t * (x1 - x0) + 1, y0 + t * (y1 - y0) + 1]);
  }
  const hits = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]) || a[2] > f.right + 12 || a[0] < f.left;
  for (const p of points) {
    const text = f.right < 560 ? p.short : p.label;
    const w = text.length * 7.6;
    const [x, y] = at[p.key];
    const spots = [[x + 13, y + 4], [x - 13 - w, y + 4], [x + 10, y - 11], [x + 10, y + 20], [x - 10 - w, y - 11], [x - 10 - w, y + 20],
      [x - w / 2, f.sy(p.score.high) - 9], [x - w / 2, f.sy(p.score.low) + 18]];
    const boxes = spots.map(([lx, ly]) => [lx, ly - 11, lx + w, ly + 4]);
    const i = Math.max(0, boxes.findIndex((b) => !hits(b)));
    taken.push(boxes[i]);
    f.root.append(svg("text", { class: "point-label", x: spots[i][0], y: spots[i][1], text }));
  }
}
