// Suites, behaviour of answers, error classes and difficulty: on the held-out problems and on each suite.

const OLD_ANSWERS = "These answers were evaluated by an older version, which did not measure this. Evaluate again to see it.";
const CHANGES = [["repair", "--right"], ["stays right", "--c-stays-right"], ["stays wrong", "--c-stays-wrong"], ["spoil", "--wrong"], ["undecided", "--c-none"]]
  .map(([name, v]) => ({ name, colour: `var(${v})` }));
const ERRORS = [["right", "--c-stays-right"], ["arithmetic", "--e-arithmetic"], ["rule broken", "--e-rule"], ["copying", "--e-copying"], ["planning", "--e-planning"],
  ["format", "--e-format"], ["gave up", "--e-gave-up"], ["cut off", "--c-none"]].map(([name, v]) => ({ name, colour: `var(${v})` }));

/** The sets of problems: {key, title, models: {model: figures with pass@1, behaviour, errors, ...}}. */
function problemSets() {
  const sets = [{ key: "held-out", title: "Held-out problems", models: DATA.models }];
  const suites = new Set(Object.values(DATA.models).flatMap((m) => Object.keys(m.suites || {})));
  for (const key of suites) {
    const own = Object.entries(DATA.models).filter(([, m]) => m.suites && m.suites[key]);
    sets.push({ key, title: key, models: Object.fromEntries(own.map(([name, m]) => [name, m.suites[key]])) });
  }
  return sets;
}

/** `draw(set)` for the chosen set of problems; tabs where there are several. */
function bySet(draw, sets = problemSets()) {
  const body = el("div");
  const choose = (i) => put(body, draw(sets[i]));
  if (sets.length === 1) { choose(0); return body; }
  const tabs = choices("Problems", sets.map((s) => s.title), choose, "segmented");
  tabs.select(0);
  return [tabs, body];
}

/** A table of figures: rows {model, label, cells}. */
const figureTable = (head, rows) => el("div", { class: "table-wrap" }, el("table", { class: "figures" },
  el("thead", {}, el("tr", {}, head.map((h, i) => el("th", { scope: "col", class: i ? "n" : "", text: h })))),
  el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row" }, badge(r.model), r.label), r.cells.map((c) => el("td", { class: "n" }, c)))))));

function suiteTables() {
  const sets = problemSets().slice(1);
  if (!sets.length) return null;
  return bySet((set) => {
    const models = modelsOf(set.models);
    const n = set.models[models[0]].n;
    const score = (s) => (s ? [pct(s.mean), el("small", { text: range(s) })] : "–");
    const head = ["Model", "pass@1", ...(n > 1 ? [`pass@${n}`, `maj@${n}`] : []), "Tokens", "Cut off", "No answer"];
    const rows = models.map((m) => {
      const s = set.models[m];
      const cells = [score(s["pass@1"]), ...(n > 1 ? [score(s[`pass@${n}`]), score(s[`maj@${n}`])] : []), num(s.tokens, 1), pct(s.truncated), pct(s.unparsed)];
      return { model: m, label: nameOf(m), cells };
    });
    const p = set.models[models[0]]["pass@1"].n;
    return [figureTable(head, rows),
      el("p", { class: "note", text: `${plural(p, "problem")}, ${plural(n, "answer")} to each, judged by the rule ${set.models[models[0]].rule}.${forced(set, models)} Small figures are 95% intervals over problems.` }),
      el("div", { class: "grid" }, differencesFigure(set.key), levelFigure(set, models), calibrationFigure(set, models))];
  }, sets);
}
const forced = (set, models) => (models.some((m) => set.models[m].forced_to_go_back > 0)
  ? ` Answers with too few backtracks were forced to go back: ${models.map((m) => `${nameOf(m)} ${pct(set.models[m].forced_to_go_back)}`).join(", ")}.` : "");
function levelFigure(set, models) {
  const levels = [...new Set(models.flatMap((m) => Object.keys(set.models[m].by_level || {})))].sort();
  if (levels.length < 2) return null;
  const series = models.map((m) => ({ model: m, points: levels.map((l, at) => ({ at, score: (set.models[m].by_level || {})[l] })).filter((p) => p.score) }));
  return categories("Accuracy by level", levels, series, { xTitle: "level", yTitle: "pass@1" });
}
function calibrationFigure(set, models) {
  const names = ["0 to 25%", "25 to 50%", "50 to 75%", "75 to 100%"];
  const series = models.map((m) => ({ model: m, points: (set.models[m].calibration || []).map((c) => ({ at: Math.max(0, Math.ceil(c.confidence * 4) - 1), x: c.confidence, score: c })) }));
  return categories("Calibration of the vote", names, series, { xTitle: "share of the winner in the vote", yTitle: "right votes", diagonal: true,
    note: "On the dashed line a vote is right as often as its share says." });
}

function behaviourFigures() {
  if (!modelsOf(DATA.models).length) return absent(EVAL_MISSING);
  return bySet((set) => {
    const models = modelsOf(set.models).filter((m) => set.models[m].behaviour);
    if (!models.length) return absent(OLD_ANSWERS);
    const of = (m) => set.models[m].behaviour;
    const goesBack = models.filter((m) => Object.keys(of(m).changes).length);
    const attempts = [...new Set(models.flatMap((m) => Object.keys(of(m).by_attempts)))].sort();
    return [behaviourTable(models.map((m) => ({ model: m, label: nameOf(m), b: of(m) }))),
      el("div", { class: "grid" },
        goesBack.length > 0 && changesFigure(goesBack.map((m) => ({ model: m, label: nameOf(m), values: of(m).changes }))),
        attempts.length > 1 && categories("Accuracy by the number of attempts", attempts,
          goesBack.map((m) => ({ model: m, points: attempts.map((a, at) => ({ at, score: of(m).by_attempts[a] })).filter((p) => p.score) })),
          { xTitle: "attempts in the answer", yTitle: "right answers", note: "Answers of many attempts are often those to hard problems: this is no effect of the attempts alone." })),
      searchFigures(DATA.search[set.key] || {}, set.key)];
  });
}

/** What backtracks give: right answers with a cap on backtracks, and slopes within problems. figures: {model: {limits, slopes}}. */
function searchFigures(figures, key) {
  const models = modelsOf(figures);
  const goesBack = models.filter((m) => Object.keys(figures[m].limits).length > 1);
  if (!goesBack.length) return null;
  const caps = Object.keys(figures[goesBack[0]].limits); // whole numbers come first, then "any"
  const points = (m) => caps.map((cap, at) => ({ at, score: figures[m].limits[cap] })).filter((p) => p.score);
  const sloped = goesBack.filter((m) => Object.keys(figures[m].slopes).length);
  const rows = (m) => Object.entries(figures[m].slopes).map(([name, s]) => ({ model: m, label: name.replace(/.*, at/, "…"), difference: s.mean, ...s }));
  return [el("h3", { text: "What backtracks give" }),
    el("div", { class: "grid" },
      categories("Right answers with a cap on backtracks", caps, models.map((m) => ({ model: m, points: points(m) })),
        { xTitle: "most backtracks", yTitle: "right answers", note: "The same answers, as if each had to end after so many backtracks. A model that never goes back has one point, at any." }),
      el("div", { class: "stacked" }, sloped.map((m) => forest(`${nameOf(m)}: slopes within problems`, rows(m), null, "slope, points")))),
    el("p", { class: "note", text: sloped.length ? "Slopes: points of right answers for one more backtrack, or 10 more tokens, between answers to the same problem; alone, and at an equal number " +
      "of the other. A slope is no effect of a cause: an answer goes back because it was wrong. Whiskers are 95% intervals over problems."
      : "Whiskers are 95% intervals over problems." + (key === "held-out" ? " Slopes within problems need several answers to a problem, which suites have (eval.suites)." : "") }),
    el("details", {}, el("summary", { text: "These figures as tables" }),
      scoreTable("Most backtracks", caps, models, (m, cap) => figures[m].limits[cap], (s) => pct(s.mean), range),
      sloped.length > 0 && scoreTable("Slope, points", Object.keys(figures[sloped[0]].slopes), sloped, (m, name) => figures[m].slopes[name], (s) => signed(s.mean),
        (s) => `${signed(s.low)} to ${signed(s.high)}`))];
}
const scoreTable = (corner, keys, models, of, mean, interval) => figureTable([corner, ...keys], models.map((m) => ({ model: m, label: nameOf(m),
  cells: keys.map((key) => { const s = of(m, key); return s ? [mean(s), el("small", { text: ` ${interval(s)}` })] : "–"; }) })));
function behaviourTable(rows) {
  const head = ["Model", "Reflections", "Backtracks", "Restarts", "Attempts", "First attempt right", "Repeats an attempt", "Repairs", "Spoils"];
  const cells = (b) => [num(b.reflections, 2), num(b.backtracks, 2), num(b.restarts, 2), num(b.attempts, 2), pct(b.first_attempt_right), pct(b.repeat), pct(b.repair_rate), pct(b.spoil_rate)];
  return [figureTable(head, rows.map((r) => ({ ...r, cells: cells(r.b) }))),
  el("p", { class: "note", text: "Means of an answer, in any words of the model; an attempt is the text between two backtracks or restarts. Repairs: the share of wrong attempts " +
    "after which a backtrack led to a right one. Spoils: the share of right attempts after which it led to a wrong one." })];
}
const share = (v, total) => `${num(v)} (${pct(v / total, 0)})`;
const changesFigure = (rows) => stacks("What backtracks do", rows, CHANGES, { format: share,
  note: "Each backtrack by the attempt before it and the attempt after it. Undecided: an attempt without an answer of its own." });

function errorFigures() {
  if (!modelsOf(DATA.models).length) return absent(EVAL_MISSING);
  return bySet((set) => {
    const models = modelsOf(set.models).filter((m) => set.models[m].errors);
    if (!models.length) return absent(OLD_ANSWERS);
    return errorsFigure(models.map((m) => ({ model: m, label: nameOf(m), figures: set.models[m] })));
  });
}
const errorsFigure = (rows) => stacks("Answers by their error", rows.map((r) => ({ ...r, values: { right: r.figures["pass@1"].mean, ...r.figures.errors } })), ERRORS,
  { whole: 1, format: (v) => pct(v), note: "Each wrong answer has one class by rules, the first that applies. For problems in words the rules see equations of two operands only." });

function difficultyFigures() {
  const sets = problemSets().filter((s) => modelsOf(DATA.difficulty[s.key] || {}).length);
  if (!sets.length) return absent("No accuracy by difficulty: it needs three models that have been evaluated by this version.");
  return bySet((set) => {
    const groups = DATA.difficulty[set.key];
    const keys = ["none right", "less than half right", "half or more right", "all right"]; // of evaluate.comparison
    const names = ["none", "fewer than half", "half or more", "all"];
    const series = modelsOf(groups).map((m) => ({ model: m, points: groups[m].map((g) => ({ at: keys.indexOf(g.difficulty), score: g })) }));
    return [legendOf(modelsOf(groups).map((m) => [badge(m), nameOf(m)])), categories("", names, series, { xTitle: "other models that solve the problem", yTitle: "problems solved", height: 300,
      note: "The fewer of the other models solve a problem, the harder it is for a model; its own answer does not count." })];
  }, sets);
}
