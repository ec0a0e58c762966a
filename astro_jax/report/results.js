// The sections with numbers: results, accuracy against tokens, training, data, provenance.

const MODELS = [...KNOWN_MODELS, ...Object.keys(DATA.models).filter((m) => !KNOWN_MODELS.includes(m))].filter((m) => DATA.models[m]);
const EVAL_MISSING = "The evaluation has not run, so there are no results to show (results.json is missing).";

function resultsTable() {
  if (!MODELS.length) return absent(EVAL_MISSING);
  const scores = MODELS.flatMap((m) => [DATA.models[m]["pass@1"], DATA.models[m].maj]).filter(Boolean);
  const top = ticks(0, Math.max(0.05, ...scores.map((s) => s.high)), 4).at(-1);
  const scale = Math.min(1, top);
  const head = [["Model", "Model"], ["Correct at the first attempt, pass@1", "pass@1"], ["Greedy", "Greedy"], ["Tokens", "Tokens"],
    ["Backtracks", "Backtracks"], ["Valid", "Valid"], ["Cut off", "Cut off"]];
  const axis = el("span", { class: "bar-axis" }, el("span", { text: "0" }), el("span", { text: pct(scale, 0) }));
  return el("div", { class: "table-wrap" }, el("table", { class: "models" },
    el("thead", {}, el("tr", {}, head.map(([title], i) => el("th", { scope: "col", class: i > 1 ? "n" : "" }, title, i === 1 && axis)))),
    el("tbody", {}, MODELS.flatMap((m) => modelRows(m, scale)))));
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
  if (!MODELS.length) return [];
  const ns = [...new Set(MODELS.map((m) => DATA.models[m]["pass@1"].n))].map((n) => num(n)).join(" or ");
  return [el("p", { text: `Bars show the share of held-out problems solved by one sampled answer, whiskers its 95% interval (n = ${ns}); ` +
      "greedy takes the likeliest token each time. Tokens and backtracks are means per sampled answer; valid is the share of answers " +
      "whose every step is true and allowed, also in branches that were given up; cut off the share that ran into the length limit. Direct learned from the same search trees as ASTRO, " +
      "but only from solutions without reflection or backtracking, so the difference between the two is what search in language adds." }),
    DATA.equal_tokens && el("p", { text: DATA.equal_tokens })].filter(Boolean);
}

function accuracyFigure() {
  if (!MODELS.length) return absent(EVAL_MISSING);
  const points = MODELS.flatMap((m) => {
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

function trainingFigures() {
  const of = (stage, key) => {
    const m = DATA.metrics[stage];
    return { model: stage, xs: m ? m.columns.step : [], ys: (m && m.columns[key]) || [], every: m ? m.every : 1 };
  };
  const group = (title, stages, figures) => {
    const ran = stages.filter((s) => DATA.metrics[s]);
    const gone = stages.filter((s) => !DATA.metrics[s]).map(nameOf);
    return [el("h3", { text: title }),
      ran.length > 0 && legendOf(ran.map((s) => [lineIcon(s), nameOf(s)])),
      gone.length > 0 && absent(`${gone.join(" and ")} ${gone.length > 1 ? "have" : "has"} not been trained yet.`),
      ran.length > 0 && el("div", { class: "grid" }, figures())];
  };
  const tick = (v) => v.toLocaleString("en-US", { maximumSignificantDigits: 4 }).replace("-", "−");
  const plain = (v, long) => (long ? num(v) : tick(v));
  const share = (v, long) => (long ? pct(v) : tick(100 * v) + "%");
  const pair = (stages, title, key, options) => curves(title, stages.map((s) => of(s, key)), options);
  const sft = ["direct-sft", "astro-sft"];
  const rl = ["direct-rl", "astro-rl"];
  const more = () => [
    pair(rl, "Mean reward", "reward_mean", { unit: "reward, −1 to 1", format: plain, zero: false }),
    pair(rl, "Cut off at the length limit", "truncated_rate", { unit: "responses", format: share }),
    pair(rl, "Entropy", "entropy", { unit: "nats per token", format: plain }),
    pair(rl, "Gap between sampler and trainer", "logp_gap", { unit: "log-probability, nats", format: plain }),
    pair(rl, "Ratios clipped", "clip_fraction", { unit: "tokens", format: (v, long) => (long ? pct(v, 2) : share(v)) }),
    pair(rl, "Gradient norm", "grad_norm", { unit: "norm before clipping", format: plain }),
  ];
  return [
    ...group("Supervised fine-tuning", sft, () => [
      pair(sft, "Loss", "loss", { unit: "nats per token", format: plain, zero: false }),
      pair(sft, "Speed", "tokens_per_s", { unit: "tokens per second", format: plain })]),
    ...group("Reinforcement learning", rl, () => [
      pair(rl, "Solve rate", "solve_rate", { unit: "training problems solved", format: share }),
      pair(rl, "Response length", "mean_tokens", { unit: "tokens per response", format: plain }),
      pair(rl, "Backtracks", "mean_backtracks", { unit: "backtracks per response", format: plain }),
      correlationFigure(rl)]),
    rl.some((s) => DATA.metrics[s]) && el("details", {}, el("summary", { text: "Is the training healthy? Reward, entropy, sampler gap, clipping" }), el("div", { class: "grid" }, more())),
    el("p", { class: "note", text: smoothingNote() }),
  ];
}
function smoothingNote() {
  const thinned = Object.entries(DATA.metrics).filter(([, m]) => m.every > 1).map(([s, m]) => `${nameOf(s)}: means of ${m.every} steps`);
  return "Pale lines are the logged values, strong lines their moving mean." + (thinned.length ? ` Long runs are thinned (${thinned.join("; ")}).` : "");
}
function correlationFigure(stages) {
  const series = stages.filter((s) => DATA.metrics[s]).map((s) => {
    const c = DATA.metrics[s].columns;
    return { model: s, steps: c.step, xs: c.mean_backtracks || [], ys: c.solve_rate || [] };
  }).filter((s) => s.xs.length && s.ys.length);
  if (!series.length) return null;
  const rs = series.map(({ model }) => {
    const { r, n } = DATA.pearson[model];
    return `${nameOf(model)}: ${r === null ? "r has no value, as one side does not vary" : `Pearson r = ${r.toFixed(2).replace("-", "−")} over ${num(n)} steps`}`;
  });
  const every = Math.max(...series.map((s) => DATA.metrics[s.model].every));
  const dots = every > 1 ? `A dot is the mean of ${every} steps` : "A dot is one step";
  return scatter("Backtracks against solve rate", series, {
    x: { title: "backtracks per response", format: (v, long) => num(v, long ? 2 : 1) },
    y: { title: "training problems solved", format: (v, long) => pct(v, long ? 1 : 0) },
    note: `${rs.join(". ")}. ${dots}, later steps darker.`,
  });
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
