// The sections with numbers: results, accuracy against tokens, data, provenance.

const modelsOf = (models) => [...KNOWN_MODELS, ...Object.keys(models).filter((m) => !KNOWN_MODELS.includes(m))].filter((m) => models[m]);
const EVAL_MISSING = "The evaluation has not run, so there are no results to show (results.json is missing).";

function resultsTable() {
  if (!modelsOf(DATA.models).length) return absent(EVAL_MISSING);
  const scores = modelsOf(DATA.models).flatMap((m) => [DATA.models[m]["pass@1"], DATA.models[m].maj]).filter(Boolean);
  const top = ticks(0, Math.max(0.05, ...scores.map((s) => s.high)), 4).at(-1);
  const scale = Math.min(1, top);
  const head = [["Model", "Model"], ["Correct at the first attempt, pass@1", "pass@1"], ["Greedy", "Greedy"], ["Tokens", "Tokens"],
    ["Backtracks", "Backtracks"], ["Valid", "Valid"], ["Cut off", "Cut off"]];
  const axis = el("span", { class: "bar-axis" }, el("span", { text: "0" }), el("span", { text: pct(scale, 0) }));
  return el("div", { class: "table-wrap" }, el("table", { class: "models" },
    el("thead", {}, el("tr", {}, head.map(([title], i) => el("th", { scope: "col", class: i > 1 ? "n" : "" }, title, i === 1 && axis)))),
    el("tbody", {}, modelsOf(DATA.models).flatMap((m) => modelRows(m, scale)))));
}

/** The paired differences on a set of problems, as a picture. */
function differencesFigure(key) {
  const rows = Object.entries(DATA.differences[key] || {}).map(([pair, d]) => {
    const [a, b] = pair.split(" - ");
    return { model: a, label: `${nameOf(a)} − ${nameOf(b)}`, ...d };
  });
  return rows.length ? forest("Paired differences", rows, "Points between two models on the same problems, with the 95% interval. An interval " +
    "without 0 says that the two differ on problems like these; it does not cover the seed of training.") : null;
}

function modelRows(model, scale) {
  const r = DATA.models[model];
  const cell = (label, value, small) => el("td", { class: "n", "data-label": label }, value, small && el("small", { text: small }));
  const rows = [el("tr", {},
    el("th", { scope: "row" }, badge(model), nameOf(model)),
    el("td", { class: "score" }, bar(model, r["pass@1"], scale), scoreText(r["pass@1"])),
    cell("Greedy", pct(r.greedy.mean), range(r.greedy)),
    cell("Tokens", num(r.mean_tokens, 1)),
    cell("Backtracks", num(r.mean_backtracks, 2)),
    cell("Valid", pct(r.valid_rate)),
    cell("Cut off", pct(r.truncated_rate)))];
  if (r.maj) {
    rows.push(el("tr", { class: "vote" },
      el("th", { scope: "row" }, badge(model, diamond), `majority of ${num(r.maj.k)}`),
      el("td", { class: "score" }, bar(model, r.maj, scale, true), scoreText(r.maj)),
      el("td", { class: "n gap" }),
      cell("Tokens", num(r.maj.mean_tokens, 1), `for all ${num(r.maj.k)}`),
      el("td", { class: "gap" }), el("td", { class: "gap" }), el("td", { class: "gap" })));
  }
  return rows;
}
const scoreText = (s) => el("span", { class: "score-text" }, el("b", { text: pct(s.mean) }), el("small", { text: range(s) }));
function bar(model, s, scale, vote) {
  const at = (x) => (100 * x / scale).toFixed(2) + "%";
  const node = el("span", { class: "bar" + (vote ? " thin" : "") },
    el("i", { style: `width:${at(s.mean)};background:${colour(model)}` }),
    el("i", { class: "whisk", style: `left:${at(s.low)};width:${at(s.high - s.low)}` }));
  return tipOn(node, () => [`${nameOf(model)}${vote ? ", majority vote" : ""}`, { label: "mean", value: pct(s.mean) },
    { label: "95% interval", value: range(s) + "%" }, { label: "n", value: num(s.n) }]);
}

function howToRead() {
  if (!modelsOf(DATA.models).length) return [];
  const ns = [...new Set(modelsOf(DATA.models).map((m) => DATA.models[m]["pass@1"].n))].map((n) => num(n)).join(" or ");
  return [el("p", { text: `Bars show the share of held-out problems solved by one sampled answer, whiskers its 95% interval (n = ${ns}); ` +
      "greedy takes the likeliest token each time. Tokens and backtracks are means per sampled answer; valid is the share of answers " +
      "whose every step is true and allowed, also in branches that were given up; cut off the share that ran into the length limit. Direct learned from the same search trees as ASTRO, " +
      "but only from solutions without reflection or backtracking, so the difference between the two is what search in language adds." }),
    DATA.equal_tokens && el("p", { text: DATA.equal_tokens })].filter(Boolean);
}

function accuracyFigure() {
  if (!modelsOf(DATA.models).length) return absent(EVAL_MISSING);
  const points = modelsOf(DATA.models).flatMap((m) => {
    const r = DATA.models[m];
    const one = { key: m, model: m, x: r.mean_tokens, score: r["pass@1"], label: nameOf(m), short: nameOf(m), shape: mark };
    if (!r.maj) return [one];
    const vote = { x: r.maj.mean_tokens, score: r.maj, label: `${nameOf(m)}, majority of ${r.maj.k}`, short: `vote of ${r.maj.k}` };
    return [one, { key: m + "-maj", model: m, shape: diamond, ...vote }];
  });
  const arrows = ["direct", "astro"].flatMap((f) => [["base", `${f}-sft`], [`${f}-sft`, `${f}-rl`]]);
  const icons = [[badge("base"), "base"], [badge("astro-sft"), "ASTRO, SFT"], [badge("astro-rl"), "ASTRO, RL"],
    [badge("direct-sft"), "Direct, SFT"], [badge("direct-rl"), "Direct, RL"]];
  if (points.some((p) => p.shape === diamond)) icons.push([badge("direct-rl", diamond), "majority vote"]);
  const draw = intervals(points, arrows, {
    x: { title: "mean tokens per response", format: (v) => num(v, 0) },
    y: { title: "problems solved, with 95% interval", format: (v) => pct(v, 0) },
  });
  return figure("", draw, { legend: legendOf(icons), label: "Accuracy against mean tokens per response",
    note: "Arrows lead from the base model through supervised fine-tuning to reinforcement learning. A majority vote counts the tokens of all its answers." });
}

function dataTables() {
  if (!DATA.counts) return absent("No traces have been made yet (traces/counts.json is missing).");
  const flat = Object.entries(DATA.counts).filter(([, v]) => v === null || typeof v !== "object");
  const nested = Object.entries(DATA.counts).filter(([, v]) => v !== null && typeof v === "object");
  const table = (title, entries) => el("table", { class: "counts" }, title && el("caption", { text: words(title) }),
    el("tbody", {}, entries.map(([k, v]) => el("tr", {}, el("th", { scope: "row", text: words(k) }),
      el("td", { class: "n", text: v !== null && typeof v === "object" ? JSON.stringify(v) : num(v) })))));
  return el("div", { class: "count-grid" }, flat.length > 0 && table(nested.length ? "total" : "", flat), nested.map(([k, v]) => table(k, Object.entries(v))));
}

function provenanceTables() {
  const p = DATA.provenance;
  const facts = [["Command", p.command || "not recorded"], ["Seed", p.seed === null || p.seed === undefined ? "not recorded" : String(p.seed)],
    ["Versions", Object.entries(p.versions).map(([k, v]) => `${k} ${v.join(" / ")}`).join(", ") || "not recorded"]];
  const extra = (x) => Object.entries(x).filter(([, v]) => typeof v === "number" || typeof v === "string")
    .map(([k, v]) => `${words(k).toLowerCase()} ${num(v)}`).join(", ");
  const total = p.stages.reduce((sum, s) => sum + (s.wall_s || 0), 0);
  return [
    el("dl", {}, facts.map(([k, v]) => [el("dt", { text: k }), el("dd", { class: k === "Command" ? "mono" : "", text: v })])),
    p.stages.length ? el("div", { class: "table-wrap" }, el("table", { class: "stages" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Stage" }), el("th", { scope: "col", class: "n", text: "Wall time" }), el("th", { scope: "col", text: "Inputs" }), el("th", { scope: "col", text: "Wrote" }))),
      el("tbody", {}, p.stages.map((s) => el("tr", {}, el("th", { scope: "row", text: s.stage }), el("td", { class: "n", text: duration(s.wall_s) }),
        el("td", { class: "mono", text: s.digest }), el("td", { text: [s.from && `kept from ${s.from}`, extra(s.extra)].filter(Boolean).join("; ") })))),
      el("tfoot", {}, el("tr", {}, el("th", { scope: "row", text: "all" }), el("td", { class: "n", text: duration(total) }), el("td", {}), el("td", {})))))
      : absent("No stage has written a manifest yet."),
    p.config && el("details", {}, el("summary", { text: "The whole configuration" }), el("pre", { text: JSON.stringify(p.config, null, 2) })),
  ];
}
