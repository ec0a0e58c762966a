// A search tree, left to right, with the order in which a trace visits its nodes.

const WIDTH = { min: 170, max: 216 }; // of a box: wide, if the tree then still fits beside its trace
const HEIGHT = { big: 42, small: 24 }; // of the trace's own steps, and of the others
const GAP_X = 40;
const GAP_Y = 7;
const SIBLINGS = 2; // shown beside a trace's own steps; the others fold into one line

/** A tree as maps: node by id, children by id. */
function index(nodes) {
  const kids = new Map(nodes.map((n) => [n.id, []]));
  const node = new Map(nodes.map((n) => [n.id, n]));
  for (const n of nodes) if (n.parent !== null && kids.has(n.parent) && n.parent !== n.id) kids.get(n.parent).push(n);
  return { node, kids, root: nodes.find((n) => !node.has(n.parent)) || nodes[0] };
}

/** The path of a trace in the tree: visits [{id, kind, order}] and jumps [[from, to]]. A reflection does not move. */
function route(trace) {
  const visits = [];
  const jumps = [];
  let at = null;
  for (const segment of trace ? trace.segments : []) {
    if (segment.kind === "reflect" || segment.node === null) continue;
    if (segment.kind === "backtrack" && at !== null) jumps.push([at, segment.node]);
    at = segment.node;
    visits.push({ id: at, kind: segment.kind, order: visits.length + 1 });
  }
  return { visits, jumps };
}

/** Nodes of the trace and all their ancestors. */
function onTrace(tree, visits) {
  const on = new Set([tree.root.id]);
  for (let { id } of visits) while (tree.node.has(id) && !on.has(id)) { on.add(id); id = tree.node.get(id).parent; }
  return on;
}

/** The children to draw, and how many are folded away. */
function shownKids(tree, n, on, state) {
  const all = tree.kids.get(n.id);
  if (state.all || state.open.has(n.id)) return { kids: all, folded: n.hidden };
  if (!on.has(n.id)) return { kids: [], folded: all.length + n.hidden };
  const others = all.filter((k) => !on.has(k.id)).sort((a, b) => b.visits - a.visits || a.id - b.id);
  const keep = new Set(others.slice(0, on.size > 1 ? SIBLINGS : 6).map((k) => k.id));
  return { kids: all.filter((k) => on.has(k.id) || keep.has(k.id)), folded: Math.max(0, others.length - keep.size) + n.hidden };
}

/** Positions: each box {node, x, y, w, h, folded}, leaves on rows of their own, parents at the middle of their children. */
function layout(tree, on, state, available) {
  const depth = (n) => 1 + Math.max(0, ...shownKids(tree, n, on, state).kids.map(depth));
  const columns = depth(tree.root);
  const w = Math.max(WIDTH.min, Math.min(WIDTH.max, (available - 30 - GAP_X * (columns - 1)) / columns));
  const boxes = new Map();
  let bottom = 14;
  let right = 0;
  const place = (n, depth) => {
    const h = on.has(n.id) ? HEIGHT.big : HEIGHT.small;
    const { kids, folded } = shownKids(tree, n, on, state);
    const box = { node: n, x: 10 + depth * (w + GAP_X), y: 0, w, h, folded, kids, stub: folded > 0 && kids.length > 0 };
    boxes.set(n.id, box);
    right = Math.max(right, box.x + w + (folded && !box.stub ? 28 : 0));
    if (!kids.length) {
      box.y = bottom + (on.has(n.id) ? 6 : 0);
      bottom = box.y + h + GAP_Y;
      return box;
    }
    const start = bottom;
    const placed = kids.map((k) => place(k, depth + 1));
    const first = placed[0];
    const last = placed.at(-1);
    box.y = Math.max(start, (first.y + first.h / 2 + last.y + last.h / 2) / 2 - h / 2);
    bottom = Math.max(bottom, box.y + h + (box.stub ? 26 : 0) + GAP_Y);
    return box;
  };
  place(tree.root, 0);
  return { boxes, width: right + 14, height: bottom + 12 };
}

const RULER = document.createElement("canvas").getContext("2d");
const FITTED = new Map(); // a redraw shortens the same texts again
/** The text, shortened to the width in pixels. */
function fit(text, width, font) {
  const key = `${font} ${Math.round(width)} ${text}`;
  if (!FITTED.has(key)) FITTED.set(key, shortened(text.trim().replace(/\s+/g, " "), width, font));
  return FITTED.get(key);
}
function shortened(text, width, font) {
  if (RULER.font !== font) RULER.font = font;
  if (text.length < 200 && RULER.measureText(text).width <= width) return text;
  let [fits, n] = [0, Math.min(text.length, 200)]; // the longest beginning, by halves
  while (n - fits > 1) {
    const middle = (fits + n) >> 1;
    if (RULER.measureText(text.slice(0, middle) + "…").width > width) n = middle; else fits = middle;
  }
  return text.slice(0, fits).trimEnd() + "…";
}
const verdictOf = (n) => (n.terminal ? (n.correct ? "right" : "wrong") : "open");

/** A check mark or a cross in a disc: shape and colour both say it. */
function verdictMark(kind, x, y, r = 7) {
  const d = kind === "right" ? `M${x - 3.2} ${y + 0.2}L${x - 0.8} ${y + 2.8}L${x + 3.4} ${y - 2.6}` : `M${x - 2.6} ${y - 2.6}L${x + 2.6} ${y + 2.6}M${x + 2.6} ${y - 2.6}L${x - 2.6} ${y + 2.6}`;
  return svg("g", { class: "verdict " + kind }, svg("circle", { cx: x, cy: y, r }), svg("path", { d }));
}

function nodeRows(n) {
  const rows = [n.text.trim() || "the problem"];
  if (n.terminal) rows.push({ label: n.correct ? "right answer" : "wrong answer", value: n.answer === null ? "none" : String(n.answer) });
  rows.push({ label: "Q, value", value: num(n.value, 2) }, { label: "N, visits", value: num(n.visits) });
  if (isNumber(n.prior)) rows.push({ label: "P, prior", value: num(n.prior, 2) });
  if (isNumber(n.reward)) rows.push({ label: "R, mean of its rollouts", value: num(n.reward, 2) });
  return rows;
}

/** One node's drawing. The tint is Q: none at 0, full at 1. */
function drawNode(box, label, visits, big, act) {
  const { node: n, x, y, w, h } = box;
  const kind = verdictOf(n);
  const q = isNumber(n.value) ? Math.max(0, Math.min(1, n.value)) : 0;
  const textWidth = w - 18 - (n.terminal ? 20 : 0);
  const stats = `Q ${num(n.value, 2)}  N ${num(n.visits)}`;
  const font = "11.5px system-ui, sans-serif";
  const g = svg("g", { class: `node ${kind}${big ? " big" : ""}`, role: "button", "data-id": n.id,
    "aria-label": `${label}, ${stats}${n.terminal ? (n.correct ? ", right" : ", wrong") : ""}${box.folded ? `, ${box.folded} children folded` : ""}` },
    svg("rect", { class: "back", x, y, width: w, height: h, rx: 5 }),
    svg("rect", { class: "tint", x, y, width: w, height: h, rx: 5, style: `fill-opacity:${(0.42 * q).toFixed(3)}` }));
  if (big) {
    g.append(svg("text", { class: "step", x: x + 10, y: y + 18, text: fit(label, textWidth, font) }), svg("text", { class: "stats", x: x + 10, y: y + 34, text: stats }));
  } else {
    const short = `Q ${num(n.value, 2)}`;
    g.append(svg("text", { class: "step", x: x + 9, y: y + 16, text: fit(label, textWidth - 44, "11px system-ui, sans-serif") }),
      svg("text", { class: "stats", x: x + w - (n.terminal ? 28 : 8), y: y + 16, "text-anchor": "end", text: short }));
  }
  if (n.terminal) g.append(verdictMark(kind, x + w - 14, y + h / 2));
  g.append(...orderBadges(visits, x + 3, y));
  tipOn(g, () => nodeRows(n));
  g.addEventListener("pointerenter", () => act.enter(n.id));
  g.addEventListener("pointerleave", () => act.leave());
  g.addEventListener("focus", () => act.enter(n.id));
  g.addEventListener("blur", () => act.leave());
  g.addEventListener("click", () => act.pick(n.id));
  g.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); act.pick(n.id); } });
  return g;
}
/** The numbers of a node's visits, on its upper edge; a visit by backtracking is violet. */
function orderBadges(visits, x, y) {
  return visits.slice(0, 8).map((v) => {
    const w = 10 + 6 * String(v.order).length;
    const g = svg("g", { class: "order " + v.kind }, svg("rect", { x, y: y - 8, width: w, height: 16, rx: 8 }),
      svg("text", { x: x + w / 2, y: y + 3.5, "text-anchor": "middle", text: v.order }));
    x += w + 2;
    return g;
  });
}

function edge(a, b, cls) {
  const [x0, y0, x1, y1] = [a.x + a.w, a.y + a.h / 2, b.x, b.y + b.h / 2];
  const m = (x0 + x1) / 2;
  return svg("path", { class: cls, d: `M${x0} ${y0}C${m} ${y0} ${m} ${y1} ${x1} ${y1}` });
}
/** A jump back: from the left edge of the step it leaves, under the boxes between, to the lower edge of its ancestor. */
function jumpPath(a, b) {
  const [x0, y0] = [a.x + 24, a.y + a.h];
  const [x1, y1] = [b.x + b.w - 26, b.y + b.h];
  const low = Math.max(y0, y1) + 16 + Math.min(26, Math.abs(y0 - y1) / 8);
  const d = Math.abs(y0 - y1) < 30 || y0 > y1
    ? `M${x0} ${y0}C${x0 - 8} ${low} ${x1 + 10} ${low} ${x1} ${y1 + 7}`
    : `M${x0} ${a.y + a.h}C${x0 - 40} ${a.y + a.h + 26} ${x1 + 30} ${(a.y + y1) / 2 + 60} ${x1} ${y1 + 7}`;
  return svg("g", { class: "jump" }, svg("path", { d }), svg("path", { class: "jump-head", d: `M${x1 - 4} ${y1 + 8}L${x1} ${y1 + 1.5}L${x1 + 4} ${y1 + 8}` }));
}

/** Draw the tree into `holder`. act: enter(id), leave(), pick(id); state: {all, open}. Returns the node elements by id. */
function drawTree(holder, problem, trace, state, act, redraw) {
  const tree = index(problem.nodes);
  const { visits, jumps } = route(trace);
  const on = onTrace(tree, visits);
  const { boxes, width, height } = layout(tree, on, state, holder.clientWidth);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Search tree" });
  const nodes = new Map();
  const front = [];
  const opens = (box) => box.folded > box.node.hidden; // the other folded children are not in the page
  const open = (id) => { state.open.add(id); redraw(); };
  for (const [id, box] of boxes) {
    for (const k of box.kids) front[on.has(k.id) ? "push" : "unshift"](edge(box, boxes.get(k.id), on.has(k.id) && on.size > 1 ? "edge walked" : "edge"));
    if (opens(box)) front.push(stub(box, () => open(id)));
  }
  root.append(...front, ...jumps.filter(([a, b]) => boxes.has(a) && boxes.has(b)).map(([a, b]) => jumpPath(boxes.get(a), boxes.get(b))));
  const byNode = new Map();
  for (const visit of visits) byNode.set(visit.id, [...(byNode.get(visit.id) || []), visit]);
  for (const [id, box] of boxes) {
    const label = id === tree.root.id ? problem.label : box.node.text;
    const g = drawNode(box, label, byNode.get(id) || [], on.has(id), act);
    nodes.set(id, g);
    root.append(g);
  }
  holder.replaceChildren(root);
  rove(nodes, tree.root.id, (id, key) => {
    const box = boxes.get(id);
    if (key === "ArrowRight" && opens(box)) { open(id); return null; }
    return key === "ArrowRight" ? box.kids[0] && box.kids[0].id : key === "ArrowLeft" ? box.node.parent : neighbour(boxes, box, key === "ArrowDown" ? 1 : -1);
  });
  return nodes;
}
/** The next box in the same column: below for d = 1, above for d = -1. */
function neighbour(boxes, box, d) {
  const column = [...boxes.values()].filter((b) => b.x === box.x && (b.y - box.y) * d > 0).sort((a, b) => (a.y - b.y) * d);
  return column.length ? column[0].node.id : null;
}
/** "+ 5 more": children that are folded away, under the box or, when all are, at its side; a click shows them. */
function stub(box, open) {
  const below = box.stub;
  const [w, h] = below ? [62, 18] : [30, 20];
  const x = below ? box.x + 2 : box.x + box.w + 5;
  const y = below ? box.y + box.h + 5 : box.y + box.h / 2 - h / 2;
  const text = below ? `+ ${box.folded} more` : `+${box.folded}`;
  return svg("g", { class: "stub", role: "button", "aria-label": `show ${box.folded} more nodes`, onclick: open },
    svg("rect", { x, y, width: w, height: h, rx: h / 2 }), svg("text", { x: x + w / 2, y: y + h / 2 + 3.6, "text-anchor": "middle", text }));
}
