// A search tree beside its trace. Trees come packed: one is unpacked when it is chosen.

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const problem = JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
  const columns = Object.entries(problem.nodes);
  problem.nodes = columns[0][1].map((_, i) => Object.fromEntries(columns.map(([key, values]) => [key, values[i]])));
  return problem;
}

function treeExplorer() {
  const problems = DATA.problems;
  if (!problems.length) return absent("No search trees are in this folder yet (search/trees-*.jsonl.gz is missing).");
  const body = el("div");
  const options = (holds) => problems.map((p, i) => [i, p.label]).filter(([i]) => holds(problems[i]));
  const groups = [["With traces", options((p) => p.traces)], ["Solved, without a trace", options((p) => !p.traces && p.solved)],
    ["Not solved", options((p) => !p.traces && !p.solved)]];
  let wanted = 0;
  const bar = picker("tree", "Problem", groups, problems.length, async (i) => {
    wanted = i;
    const problem = await unpack(problems[i].packed);
    if (wanted === i) put(body, problemView(problem)); // unless another has been chosen meanwhile
  }, el("span", { class: "muted", text: plural(problems.length, "tree") }));
  bar.select(0);
  return [el("p", { class: "prose", text: "Each box is one reasoning step: the deeper its tint the higher its value Q, and N counts its visits. " +
      "A check mark or a cross says whether a finished solution is right. Numbers give the order in which the trace visits the steps; " +
      "dashed arrows are its backtracks. Point at a step to find it on the other side. In the tree the arrow keys move, and the right arrow unfolds a step." }), bar, body];
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
  let litNode = null;
  const light = (id) => {
    litNode = id;
    for (const [key, g] of nodes) g.classList.toggle("lit", key === id);
    for (const s of segments) s.row.classList.toggle("lit", id !== null && s.node === id);
  };
  const toSegment = (id) => { const s = segments.find((t) => t.node === id); if (s) reveal(s.row, list); };
  const toNode = (id) => { if (nodes.has(id)) reveal(nodes.get(id), scroller); };
  const act = { enter: (id) => { light(id); toSegment(id); }, leave: () => light(null), pick: toSegment };
  const redraw = () => { // the keyboard stays at its node
    const focused = scroller.contains(document.activeElement) && document.activeElement.dataset.id;
    nodes = drawTree(scroller, problem, trace, state, act, redraw);
    light(litNode);
    const again = [...nodes].find(([id]) => String(id) === focused);
    if (again) again[1].focus({ preventScroll: true });
  };
  onWidth(scroller, (width, first) => {
    redraw();
    if (first && segments.length && nodes.has(segments[0].node)) {
      reveal(nodes.get(segments[0].node), scroller, "instant");
      scroller.scrollLeft = 0;
    }
  });
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
function reveal(child, scroller, behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth") {
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
