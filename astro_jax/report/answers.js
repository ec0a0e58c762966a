// The models' answers side by side, as graphs and as text, and completions during RL.

const OUTCOMES = (stage) => ({
  astro: `only ASTRO-${stage.toUpperCase()} solves it`, both: "both solve it",
  direct: `only Direct-${stage.toUpperCase()} solves it`, neither: "neither solves it",
});

function answerExplorer() {
  const held = DATA.held_out;
  if (!held.problems.length) return absent("The models' answers are not in this folder yet (eval/MODEL/answers-*.jsonl is missing).");
  const state = { i: 0, mode: "sampled", model: null };
  const grid = el("div", { class: "answers" });
  const show = () => {
    const problem = held.problems[state.i];
    grid.classList.toggle("by-run", state.model !== null);
    put(grid, questionCard(held, problem), state.model ? cardsOfRuns(problem, state) : cardsOfModels(held, problem, state.mode));
  };
  const modes = choices("Which answer", ["Sampled", "Greedy"], (i) => { state.mode = i ? "greedy" : "sampled"; show(); }, "segmented");
  const bar = picker("held-out", "Problem", pickerGroups(held), held.problems.length, (i) => { state.i = i; show(); }, modes);
  modes.select(0);
  bar.select(0);
  const models = PAGE.compared && PAGE.compared.models.map((r) => r.model);
  const who = models && choices("Models", ["Models of this run", ...models.map((m) => `${nameOf(m)} of all runs`)], (i) => { state.model = i ? models[i - 1] : null; show(); }, "segmented");
  if (who) who.select(0);
  return [el("p", { class: "prose", text: heldOutText(held) }), held.stage && outcomeTable(held), who, bar, grid];
}
function heldOutText(held) {
  const base = `${plural(held.problems.length, "problem")} that no model was trained on, picked by a fixed rule`;
  const graph = "Above each answer is its graph: a number is a step in the order of the answer, a dashed arrow goes back, and a step that is tried again from the same place is the same node. " +
    "A mark says whether an attempt that ends there is right. Arrow keys move between the nodes.";
  return `${base}${held.stage ? " from each outcome below. The table counts all evaluated problems by who solved them with the sampled answer" : ""}. ${graph}`;
}
function outcomeTable(held) {
  const c = held.counts;
  const [astro, direct] = [`ASTRO-${held.stage.toUpperCase()}`, `Direct-${held.stage.toUpperCase()}`];
  const total = c.both + c.astro + c.direct + c.neither || 1;
  const cell = (n) => el("td", { class: "n" }, num(n), el("small", { text: pct(n / total, 0) }));
  return el("table", { class: "outcomes" }, el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col", text: `${direct} right` }), el("th", { scope: "col", text: `${direct} wrong` }))),
    el("tbody", {}, el("tr", {}, el("th", { scope: "row", text: `${astro} right` }), cell(c.both), cell(c.astro)),
      el("tr", {}, el("th", { scope: "row", text: `${astro} wrong` }), cell(c.direct), cell(c.neither))));
}
function pickerGroups(held) {
  const options = held.problems.map((p, i) => [i, p.prompt.trim().replace(/\s+/g, " ").slice(0, 70)]);
  if (!held.stage) return [["", options]];
  return Object.entries(OUTCOMES(held.stage)).map(([key, text]) => [capital(text), options.filter(([i]) => held.problems[i].outcome === key)]);
}

/** A card for each model: ASTRO's stages in one column, Direct's in the next, base under the problem. */
const cardsOfModels = (held, problem, mode) => KNOWN_MODELS.filter((m) => held.models.includes(m))
  .map((m) => answerCard(m, [badge(m), nameOf(m)], problem.answers[m][mode]));
/** The answers of one model in all runs to the same problem. */
const cardsOfRuns = (problem, { model, mode }) => PAGE.runs.map((run) => {
  const same = run.held_out.problems.find((p) => p.id === problem.id);
  return answerCard(model, [badge(model), run.name], same && same.answers[model] && same.answers[model][mode]);
});
function questionCard(held, problem) {
  const one = problem.outcome === "astro" || problem.outcome === "direct";
  return el("div", { class: "card question" }, el("h3", { text: "The problem" }), el("p", { text: problem.prompt.trim() }),
    problem.outcome && el("p", { class: "muted", text: `${capital(OUTCOMES(held.stage)[problem.outcome])} with ${one ? "its sampled answer" : "the sampled answers"}.` }));
}
/** A frame with a verdict, facts and a text. verdict: {kind, text} or null. */
function card(model, cls, head, verdict, facts, ...body) {
  return el("article", { class: "card " + cls, style: `--model:${colour(model)}` },
    el("div", { class: "card-head" }, head && el("h3", {}, head), verdict && el("span", { class: "result " + verdict.kind },
      svg("svg", { class: "badge", width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, verdictMark(verdict.kind, 8, 8)), verdict.text)),
    facts && el("p", { class: "facts", text: facts.filter(Boolean).join(" · ") }), body);
}
function answerCard(model, head, answer) {
  if (!answer) return card(model, `m-${model}`, head, null, null, absent("No such answer was stored."));
  const facts = [plural(answer.tokens, "token"), plural(answer.backtracks, "backtrack"), answer.valid === false && "not valid", answer.truncated && "cut off",
    answer.error && answer.error !== "cut off" && `error: ${answer.error}`];
  return card(model, `m-${model}`, head, answer.correct ? { kind: "right", text: "correct" } : { kind: "wrong", text: "wrong" }, facts,
    graphAndText(answer, `Answer of ${nameOf(model)}`));
}

/** The completions of one prompt at a time, by stage of RL and step. */
function rolloutExplorer() {
  const stages = modelsOf(DATA.rollouts);
  if (!stages.length) return absent("No completions of RL are in this folder yet (rollouts.jsonl is missing).");
  const [bar, grid] = [el("div"), el("div", { class: "answers" })];
  const pickStage = (stage) => {
    const groups = DATA.rollouts[stage];
    const steps = choices("Step", groups.map((g) => `step ${g.step}`), (i) => put(grid, rolloutCards(stage, groups[i])));
    put(bar, steps);
    steps.select(groups.length - 1);
  };
  const tabs = choices("Stage", stages.map(nameOf), (i) => pickStage(stages[i]), "segmented");
  tabs.select(0);
  return [el("p", { class: "prose", text: "One prompt of a step, with all completions that the policy sampled for it." }), tabs, bar, grid];
}
function rolloutCards(stage, group) {
  const problem = el("div", { class: "card question" }, el("h3", { text: "The problem" }), el("p", { text: group.prompt.trim() }),
    group.beginning && [el("p", { class: "muted", text: "The responses begin inside a trace:" }), el("pre", {}, marked(group.beginning))]);
  return [problem, ...group.completions.map((c) => card(stage, "", null, { kind: c.status === "correct" ? "right" : "wrong", text: c.status },
    [`reward ${num(c.reward)}`, `advantage ${num(c.advantage, 2)}`, plural(c.tokens, "token"), plural(c.backtracks, "backtrack"), !c.stopped && "cut off"],
    el("pre", { tabindex: "0", "aria-label": "Completion" }, marked(c.text.replace(/^[ \n]+|\s+$/g, "").replace(/\n /g, "\n")))))];
}
