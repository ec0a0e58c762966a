// Charts that compare models: stacked shares, accuracies by category, and differences with their intervals.

/** Stacked horizontal bars. rows: [{model, label, values: {part: number}}]; parts: [{name, colour}]; `format` of a value. */
function stacks(title, rows, parts, { format, whole, note } = {}) {
  const used = parts.filter((p) => rows.some((r) => r.values[p.name] > 0));
  const bars = rows.map((row) => {
    const total = whole || Object.values(row.values).reduce((a, b) => a + b, 0) || 1;
    const shown = used.filter((p) => row.values[p.name] > 0);
    const text = shown.map((p) => `${p.name} ${format(row.values[p.name], total)}`).join(", ") || "none";
    const bar = el("div", { class: "stack", role: "img", tabindex: "0", "aria-label": `${row.label}: ${text}` },
      shown.map((p) => el("i", { style: `width:${(100 * row.values[p.name] / total).toFixed(2)}%;background:${p.colour}` })));
    tipOn(bar, () => [row.label, ...shown.map((p) => ({ mark: swatch(p.colour), label: p.name, value: format(row.values[p.name], total) }))]);
    return el("div", { class: "stack-row" }, el("span", { class: "stack-label" }, badge(row.model), row.label), bar);
  });
  return el("figure", {}, el("figcaption", { text: title }), legendOf(used.map((p) => [swatch(p.colour), p.name])), bars, note && el("p", { class: "note", text: note }));
}
const swatch = (fill) => svg("svg", { class: "badge", width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" },
  svg("rect", { width: 12, height: 12, rx: 2, style: `fill:${fill}` }));

/** Scores with intervals by category. series: [{model, points: [{at, score}]}], `at` the index of a name. */
function categories(title, names, series, { xTitle, yTitle, note, diagonal, height = 250 } = {}) {
  series = series.filter((s) => s.points.length);
  if (!series.length) return null;
  const draw = (width) => {
    const f = frame(width, height, { low: 0, high: 1, exact: true, title: "", format: () => "" },
      { low: 0, high: Math.max(0.1, ...series.flatMap((s) => s.points.map((p) => p.score.high))), title: yTitle, format: (v) => pct(v, 0) });
    const band = (f.right - f.left) / names.length;
    names.forEach((name, i) => {
      const text = svg("text", { class: "tick", x: f.left + (i + 0.5) * band, y: f.bottom + 15, "text-anchor": "middle", text: name });
      if (name.length * 6.3 > band) text.setAttribute("textLength", String(band - 4)), text.setAttribute("lengthAdjust", "spacingAndGlyphs");
      f.root.append(text);
    });
    f.root.append(svg("text", { class: "axis-title", x: f.right, y: height - 5, "text-anchor": "end", text: xTitle }));
    if (diagonal) f.root.append(svg("path", { class: "rule", d: `M${f.left} ${f.sy(0)}L${f.right} ${f.sy(1)}` }));
    series.forEach((s, j) => {
      const x = (p) => f.left + (isNumber(p.x) ? p.x * (f.right - f.left) : (p.at + 0.5 + (0.6 * (j + 0.5)) / series.length - 0.3) * band);
      const d = s.points.map((p, i) => `${i ? "L" : "M"}${x(p)} ${f.sy(p.score.mean)}`).join("");
      f.root.append(svg("path", { class: "link", d, style: `stroke:${colour(s.model)}` }));
      for (const p of s.points) {
        f.root.append(whisker({ score: p.score, model: s.model }, x(p), f));
        f.root.append(tipOn(svg("g", {}, svg("circle", { class: "hit", cx: x(p), cy: f.sy(p.score.mean), r: 10 }), mark(s.model, x(p), f.sy(p.score.mean), 4.5)),
          () => [`${nameOf(s.model)}, ${names[p.at]}`, { label: "right", value: pct(p.score.mean) }, { label: "95% interval", value: range(p.score) + "%" }, { label: "n", value: num(p.score.n) }]));
      }
    });
    return f.root;
  };
  return figure(title, draw, { note, label: `${title}: ${series.map((s) => `${nameOf(s.model)} ${s.points.map((p) => `${names[p.at]} ${pct(p.score.mean, 0)}`).join(", ")}`).join("; ")}` });
}

const signed = (x, digits = 1) => (x > 0 ? "+" : "") + num(100 * x, digits);

/** Differences with their intervals about zero. rows: [{model, label, difference, low, high, n}], as fractions; `what` they are. */
function forest(title, rows, note, what = "difference, points") {
  const draw = (width) => {
    const [labels, step, top] = [Math.min(190, width * 0.46), 26, 8];
    const right = width - (width > 520 ? 166 : 12);
    const reach = Math.max(0.01, ...rows.flatMap((r) => [Math.abs(r.low), Math.abs(r.high)]));
    const x = (v) => labels + 12 + ((v + reach) / (2 * reach)) * (right - labels - 12);
    const bottom = top + rows.length * step;
    const root = svg("svg", { viewBox: `0 0 ${width} ${bottom + 22}`, width, height: bottom + 22 });
    for (const t of ticks(-reach, reach, Math.max(4, (right - labels) / 90)).filter((t) => Math.abs(t) <= reach)) {
      root.append(svg("line", { class: t === 0 ? "axis" : "grid", x1: x(t), x2: x(t), y1: top, y2: bottom }),
        svg("text", { class: "tick", x: x(t), y: bottom + 15, "text-anchor": "middle", text: t === 0 ? "0" : signed(t, reach < 0.03 ? 1 : 0) }));
    }
    rows.forEach((r, i) => {
      const y = top + (i + 0.5) * step;
      const text = `${signed(r.difference)}  (${signed(r.low)} to ${signed(r.high)})`;
      const stroke = r.colour || colour(r.model);
      const g = svg("g", { class: r.low > 0 || r.high < 0 ? "decided" : "undecided" }, svg("rect", { class: "hit", x: 0, y: y - step / 2, width, height: step }),
        svg("text", { class: "forest-label", x: labels, y: y + 4, "text-anchor": "end", text: fit(r.label, labels - 2, "12.5px system-ui, sans-serif") }),
        svg("path", { class: "whisker", d: `M${x(r.low)} ${y}H${x(r.high)}M${x(r.low)} ${y - 4}v8M${x(r.high)} ${y - 4}v8`, style: `stroke:${stroke}` }),
        svg("circle", { cx: x(r.difference), cy: y, r: 4.5, style: `fill:${stroke}` }),
        width > 520 && svg("text", { class: "tick", x: right + 14, y: y + 4, text }));
      root.append(tipOn(g, () => [r.label, { label: what, value: signed(r.difference) },
        { label: "95% interval", value: `${signed(r.low)} to ${signed(r.high)}` }, { label: "problems", value: num(r.n) }]));
    });
    return root;
  };
  return figure(title, draw, { note, label: `${title}: ${rows.map((r) => `${r.label} ${signed(r.difference)} (${signed(r.low)} to ${signed(r.high)})`).join("; ")}` });
}
