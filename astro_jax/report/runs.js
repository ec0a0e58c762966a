// Several runs side by side. The first run is the baseline.

const runColour = (i) => `var(--r-${i % 6})`;

function runsSection() {
  if (!PAGE.compared) return null;
  return [runScores(), runDifferences(), runFigures(), runSettings(), runStages()];
}

/** pass@1 of each model in each run. */
function runScores() {
  const rows = PAGE.compared.models;
  if (!rows.length) return absent(EVAL_MISSING);
  const scale = Math.min(1, ticks(0, Math.max(0.05, ...rows.flatMap((r) => r.scores.map((s) => (s ? s.high : 0)))), 4).at(-1));
  const body = rows.flatMap((row) => row.scores.map((s, i) => s && el("tr", { class: i ? "" : "first" },
    el("th", { scope: "row" }, i === row.scores.findIndex(Boolean) && [badge(row.model), nameOf(row.model)]), el("td", { text: PAGE.runs[i].name }),
    el("td", { class: "score" }, bar(row.model, s, scale), scoreText(s)))));
  return el("div", { class: "table-wrap" }, el("table", { class: "models runs" }, el("thead", {}, el("tr", {},
    ["Model", "Run", "Correct at the first attempt, pass@1"].map((h) => el("th", { scope: "col", text: h })))), el("tbody", {}, body)));
}

function runDifferences() {
  const rows = PAGE.compared.models.flatMap((row) => row.differences.map((d, i) => isNumber(d.difference)
    && { ...d, model: row.model, label: `${nameOf(row.model)}, ${PAGE.runs[i].name}` })).filter(Boolean);
  return rows.length ? forest(`Paired differences from ${PAGE.runs[0].name}`, rows, "Points of pass@1 on the held-out problems that both runs answered, with the 95% interval over problems. " +
    "The interval does not cover the seed of training: `astro sweep` does.") : absent("The runs share no held-out problems, so there are no paired differences.");
}

/** Behaviour, errors and the solve rate of RL, of one model in all runs. */
function runFigures() {
  const models = PAGE.compared.models.map((r) => r.model);
  if (!models.length) return null;
  const body = el("div");
  const tabs = choices("Model", models.map(nameOf), (k) => {
    const model = models[k];
    const rows = PAGE.runs.map((run) => ({ model, label: run.name, figures: run.models[model] })).filter((r) => r.figures && r.figures.behaviour);
    const goesBack = rows.filter((r) => Object.keys(r.figures.behaviour.changes).length);
    const metrics = PAGE.runs.map((run, i) => ({ model, name: run.name, colour: runColour(i), m: run.metrics[model] })).filter((s) => s.m);
    const curve = (title, key, options) => curves(title, metrics.map((s) => ({ ...s, xs: s.m.columns.step, ys: s.m.columns[key] || [], every: s.m.every })), options);
    put(body,
      rows.length ? behaviourTable(rows.map((r) => ({ ...r, b: r.figures.behaviour }))) : absent(OLD_ANSWERS),
      el("div", { class: "grid" }, rows.length > 0 && errorsFigure(rows), goesBack.length > 0 && changesFigure(goesBack.map((r) => ({ ...r, values: r.figures.behaviour.changes })))),
      metrics.length > 0 && legendOf(metrics.map((s) => [lineIcon(model, s.colour), s.name])),
      el("div", { class: "grid" }, curve("Loss", "loss", { unit: "nats per token", format: (v) => num(v), zero: false }),
        curve("Solve rate", "solve_rate", { unit: "training problems solved", format: (v) => pct(v, 0) })),
    );
  }, "segmented");
  tabs.select(models.length - 1);
  return [el("h3", { text: "One model in all runs" }), tabs, body];
}

const runTable = (caption, rows, note) => [el("h3", { text: caption }), rows.length
  ? el("div", { class: "table-wrap" }, el("table", { class: "figures settings" },
    el("thead", {}, el("tr", {}, el("th"), PAGE.runs.map((run) => el("th", { scope: "col", text: run.name })))), el("tbody", {}, rows)))
  : absent("None."), note && el("p", { class: "note", text: note })];

function runSettings() {
  const text = (v) => (v === null || v === undefined ? "–" : typeof v === "string" ? v : JSON.stringify(v));
  return runTable("Settings that differ", PAGE.compared.settings.map((s) => el("tr", {}, el("th", { scope: "row", class: "mono", text: s.key }),
    s.values.map((v, i) => el("td", { class: "mono" + (i && text(v) !== text(s.values[0]) ? " differs" : ""), text: text(v) })))));
}
function runStages() {
  return runTable("Stages and the digests of their inputs", PAGE.compared.stages.map((s) => el("tr", {}, el("th", { scope: "row", text: s.stage }),
    s.digests.map((d, i) => el("td", { class: "mono" + (i && d !== s.digests[0] ? " differs" : ""), text: d || "–" })))), "Runs with the same digest have the same results of the stage.");
}

/** The run that the sections below show. */
function runPicker(redraw) {
  if (!PAGE.compared) return null;
  const tabs = choices("Run shown below", PAGE.runs.map((run) => run.name), (i) => {
    if (DATA === PAGE.runs[i]) return;
    DATA = PAGE.runs[i];
    redraw();
  }, "segmented");
  tabs.select(0);
  return [el("span", { class: "muted", text: "Shown below:" }), tabs];
}
