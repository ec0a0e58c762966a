// The explorers: a search tree beside its trace, the models' answers side by side, and completions during RL.

function treeExplorer() {
  if (!DATA.problems.length) return absent("No search trees are in this folder yet (search/trees-*.jsonl is missing).");
  const body = el("div");
  const name = (p) => [p.label, el("small", { text: p.traces.length ? plural(p.traces.length, "trace") : isSolved(p) ? "no trace" : "not solved" })];
  const bar = choices("Problem", DATA.problems.map(name), (i) => body.replaceChildren(...problemView(DATA.problems[i])));
  bar.select(0);
  return [el("p", { class: "prose", text: "Each box is one reasoning step: the deeper its tint the higher its value Q, and N counts its visits. " +
      "A check mark or a cross says whether a finished solution is right. Numbers give the order in which the trace visits the steps; " +
      "dashed arrows are its backtracks. Point at a step to find it on the other side." }), bar, body];
}

const isSolved = (problem) => problem.nodes.some((n) => n.terminal && n.correct);

function problemView(problem) {
  const prompt = el("p", { class: "prompt" }, el("span", { text: problem.prompt.trim() }),
    problem.answer !== null && el("span", { class: "known", text: `answer ${problem.answer}` }));
  const pane = el("div", { class: "pane" });
  if (!problem.traces.length) {
    pane.append(...treeAndTrace(problem, null));
    return [prompt, absent(isSolved(problem)
      ? "No trace was made from this tree." : "Search found no right answer here, so no trace was made from this tree."), pane];
  }
  const names = problem.traces.map((t) => {
    const jumps = t.segments.filter((p) => p.kind === "backtrack").length;
    return t.kind === "direct" ? "Direct, no backtracks" : `ASTRO, ${plural(jumps, "backtrack")}`;
  });
  const tabs = choices("Trace", names, (i) => pane.replaceChildren(...treeAndTrace(problem, problem.traces[i])), "segmented");
  tabs.select(0);
  return [prompt, tabs, pane];
}

/** Both sides of one trace, wired so that pointing at one marks the other. */
function treeAndTrace(problem, trace) {
  const state = { all: false, open: new Set() };
  const scroller = el("div", { class: "tree-scroll", tabindex: "0", "aria-label": "Search tree, scrolls" });
  let nodes = new Map();
  const segments = trace ? traceSegments(problem, trace) : [];
  const light = (id) => {
    for (const [key, g] of nodes) g.classList.toggle("lit", key === id);
    for (const s of segments) s.row.classList.toggle("lit", id !== null && s.node === id);
  };
  const toSegment = (id) => { const s = segments.find((t) => t.node === id); if (s) reveal(s.row, list); };
  const toNode = (id) => { if (nodes.has(id)) reveal(nodes.get(id), scroller); };
  const act = { enter: (id) => { light(id); toSegment(id); }, leave: () => light(null), pick: toSegment };
  const redraw = () => { nodes = drawTree(scroller, problem, trace, state, act, redraw); };
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(scroller.clientWidth - width) < 4) return;
    const first = width === 0;
    width = scroller.clientWidth;
    redraw();
    if (first && segments.length && nodes.has(segments[0].node)) {
      reveal(nodes.get(segments[0].node), scroller, "instant");
      scroller.scrollLeft = 0;
    }
  }).observe(scroller);
  for (const s of segments) {
    for (const enter of ["pointerenter", "focus"]) s.row.addEventListener(enter, () => { light(s.node); toNode(s.node); });
    for (const leave of ["pointerleave", "blur"]) s.row.addEventListener(leave, () => light(null));
  }
  const toggle = el("button", { type: "button", class: "quiet", onclick: () => {
    state.all = !state.all;
    state.open.clear();
    toggle.textContent = state.all ? "Fold the tree" : "Unfold the whole tree";
    redraw();
  } }, "Unfold the whole tree");
  const shown = problem.nodes.length < problem.size ? `, ${num(problem.nodes.length)} kept here` : "";
  const left = el("div", { class: "tree-side" }, el("div", { class: "side-head" }, el("h3", { text: "Search tree" }),
    el("span", { class: "muted", text: `${num(problem.size)} nodes${shown}` }), toggle), scroller);
  const list = el("ol", { class: "trace" }, segments.map((s) => s.row));
  const right = trace && el("div", { class: "trace-side" }, el("div", { class: "side-head" }, el("h3", { text: "Trace" }),
    legendOf([[el("mark", { class: "reflect", text: "reflection" }), ""], [el("mark", { class: "backtrack", text: "backtrack" }), ""]])), list,
    trace.omitted > 0 && el("p", { class: "note", text: `${num(trace.omitted)} more segments are not shown.` }));
  return [left, right].filter(Boolean);
}
/** Bring a child that is out of sight to the middle of its own scroller; the page stays where it is. */
function reveal(child, scroller, behavior = "smooth") {
  const [a, b] = [child.getBoundingClientRect(), scroller.getBoundingClientRect()];
  const across = a.left < b.left || a.right > b.right ? a.left + a.width / 2 - b.left - b.width / 2 : 0;
  const down = a.top < b.top || a.bottom > b.bottom ? a.top + a.height / 2 - b.top - b.height / 2 : 0;
  if (across || down) scroller.scrollBy({ left: across, top: down, behavior });
}

/** The rows of a trace, numbered as the tree numbers its visits. */
function traceSegments(problem, trace) {
  const node = new Map(problem.nodes.map((n) => [n.id, n]));
  let order = 0;
  return trace.segments.map((segment) => {
    const n = node.get(segment.node);
    const visit = segment.kind === "reflect" || segment.node === null ? null : ++order;
    const kind = n && segment.kind === "step" ? verdictOf(n) : "open";
    const row = el("li", { class: `segment ${["step", "backtrack", "reflect"].includes(segment.kind) ? segment.kind : "step"}`, tabindex: "0" },
      el("span", { class: "order-no", text: visit === null ? "" : String(visit) }),
      el("span", { class: "segment-text" }, marked(segment.text.replace(/^\n+|\s+$/g, "").replace(/^ /, "").replace(/\n /g, "\n"))),
      kind !== "open" && svg("svg", { class: "badge", width: 16, height: 16, viewBox: "0 0 16 16", role: "img", "aria-label": kind }, verdictMark(kind, 8, 8)));
    return { node: segment.node, row };
  });
}

const OUTCOMES = (stage) => ({
  astro: `only ASTRO-${stage.toUpperCase()} solves it`, both: "both solve it",
  direct: `only Direct-${stage.toUpperCase()} solves it`, neither: "neither solves it",
});

function answerExplorer() {
  const held = DATA.held_out;
  if (!held.problems.length) return absent("The models' answers are not in this folder yet (eval/<model>-*.jsonl is missing).");
  const state = { i: 0, mode: "sampled" };
  const grid = el("div", { class: "answers" });
  const picker = el("select", { id: "held-out", onchange: () => show(+picker.value) }, pickerGroups(held));
  const show = (i) => {
    state.i = (i + held.problems.length) % held.problems.length;
    picker.value = String(state.i);
    grid.replaceChildren(...answerCards(held, held.problems[state.i], state.mode));
  };
  const modes = choices("Which answer", ["Sampled", "Greedy"], (i) => { state.mode = i ? "greedy" : "sampled"; show(state.i); }, "segmented");
  modes.select(0);
  const step = (d, sign, label) => el("button", { type: "button", class: "quiet step-button", "aria-label": label, onclick: () => show(state.i + d) }, sign);
  return [el("p", { class: "prose", text: heldOutText(held) }), held.stage && outcomeTable(held),
    el("div", { class: "picker" }, el("label", { for: "held-out", text: "Problem" }), picker, step(-1, "‹", "Previous problem"), step(1, "›", "Next problem"), modes), grid];
}
function heldOutText(held) {
  const base = `${plural(held.problems.length, "problem")} that no model was trained on, picked by a fixed rule`;
  return held.stage ? `${base} from each outcome below. The table counts all evaluated problems by who solved them with the sampled answer.` : `${base}.`;
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
  const option = (p, i) => el("option", { value: String(i), text: p.prompt.trim().replace(/\s+/g, " ").slice(0, 70) });
  if (!held.stage) return held.problems.map(option);
  return Object.entries(OUTCOMES(held.stage)).map(([key, text]) => {
    const options = held.problems.map((p, i) => (p.outcome === key ? option(p, i) : null)).filter(Boolean);
    return options.length ? el("optgroup", { label: capital(text) }, options) : null;
  });
}

/** The problem, and a card for each model: ASTRO's stages in one column, Direct's in the next, base under the problem. */
function answerCards(held, problem, mode) {
  const cards = KNOWN_MODELS.filter((m) => held.models.includes(m)).map((m) => answerCard(m, problem.answers[m][mode]));
  const outcome = problem.outcome ? capital(OUTCOMES(held.stage)[problem.outcome]) + " with its sampled answer." : "";
  return [el("div", { class: "card question" }, el("h3", { text: "The problem" }), el("p", { text: problem.prompt.trim() }),
    el("p", { class: "muted", text: outcome.replace("its sampled answer", problem.outcome === "astro" || problem.outcome === "direct" ? "its sampled answer" : "the sampled answers") })), ...cards];
}
function answerCard(model, answer) {
  const head = (badgeNode) => el("div", { class: "card-head" }, el("h3", {}, badge(model), nameOf(model)), badgeNode);
  if (!answer) return el("article", { class: `card m-${model}` }, head(null), absent("No such answer was stored."));
  const kind = answer.correct ? "right" : "wrong";
  const icon = svg("svg", { class: "badge", width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, verdictMark(kind, 8, 8));
  const facts = [plural(answer.tokens, "token"), plural(answer.backtracks, "backtrack"), answer.valid === false && "not valid", answer.truncated && "cut off"];
  return el("article", { class: `card m-${model}`, style: `--model:${colour(model)}` },
    head(el("span", { class: "result " + kind }, icon, answer.correct ? "correct" : "wrong")),
    el("p", { class: "facts", text: facts.filter(Boolean).join(" · ") }),
    el("pre", { tabindex: "0", "aria-label": `Answer of ${nameOf(model)}` }, marked(answer.text.replace(/^[ \n]+|\s+$/g, "").replace(/\n /g, "\n"))));
}

/** The completions of one prompt at a time, by stage of RL and step. */
function rolloutExplorer() {
  const stages = KNOWN_MODELS.filter((m) => DATA.rollouts[m]).concat(Object.keys(DATA.rollouts).filter((m) => !KNOWN_MODELS.includes(m)));
  if (!stages.length) return absent("No completions of RL are in this folder yet (rollouts.jsonl is missing).");
  const [bar, grid] = [el("div"), el("div", { class: "answers" })];
  const pickStage = (stage) => {
    const groups = DATA.rollouts[stage];
    const steps = choices("Step", groups.map((g) => `step ${g.step}`), (i) => grid.replaceChildren(...rolloutCards(stage, groups[i])));
    bar.replaceChildren(steps);
    steps.select(groups.length - 1);
  };
  const tabs = choices("Stage", stages.map(nameOf), (i) => pickStage(stages[i]), "segmented");
  tabs.select(0);
  return [el("p", { class: "prose", text: "One prompt of a step, with all completions that the policy sampled for it." }), tabs, bar, grid];
}
function rolloutCards(stage, group) {
  return [el("div", { class: "card question" }, el("h3", { text: "The problem" }), el("p", { text: group.prompt.trim() }),
    group.beginning && [el("p", { class: "muted", text: "The responses begin inside a trace:" }), el("pre", {}, marked(group.beginning))]),
    ...group.completions.map((c) => {
      const facts = [`reward ${num(c.reward)}`, `advantage ${num(c.advantage, 2)}`, plural(c.tokens, "token"), plural(c.backtracks, "backtrack"), !c.stopped && "cut off"];
      return el("article", { class: "card", style: `--model:${colour(stage)}` },
        el("div", { class: "card-head" }, el("span", { class: "result " + (c.status === "correct" ? "right" : "wrong") }, c.status)),
        el("p", { class: "facts", text: facts.filter(Boolean).join(" · ") }),
        el("pre", { tabindex: "0", "aria-label": "Completion" }, marked(c.text.replace(/^[ \n]+|\s+$/g, "").replace(/\n /g, "\n"))));
    })];
}
