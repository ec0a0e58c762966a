// An answer as a directed graph of its steps: a node is a step, dashed arrows go back.

/** Places of the nodes: depth to the right, a row for each leaf, a parent level with its first child. */
function graphPlaces(parents, width) {
  const kids = parents.map(() => []);
  parents.forEach((p, i) => { if (p >= 0) kids[p].push(i); });
  const depth = parents.map(() => 0);
  parents.forEach((p, i) => { if (p >= 0) depth[i] = depth[p] + 1; }); // a parent comes before its children
  const dx = Math.max(26, Math.min(54, (width - 34) / Math.max(1, ...depth)));
  const y = parents.map(() => 0);
  let row = 0;
  const stack = [0];
  while (stack.length) { // depth first, and the first child on the row of its parent
    const i = stack.pop();
    y[i] = row;
    if (kids[i].length) stack.push(...[...kids[i]].reverse()); else row += 1;
  }
  return { kids, at: parents.map((_, i) => [17 + depth[i] * dx, 18 + y[i] * 30]), width: 34 + Math.max(0, ...depth) * dx, height: 12 + row * 30 };
}

/** Draw the graph into `holder`. light(id or null) is called when a node is pointed at. Returns the elements by node. */
function drawGraph(holder, answer, width, light) {
  const { parents, verdicts, segments } = answer;
  const { kids, at, width: w, height } = graphPlaces(parents, width);
  const root = svg("svg", { width: w, height: height + 8, viewBox: `0 0 ${w} ${height + 8}`, role: "group", "aria-label": `Graph of ${plural(parents.length - 1, "step")}` });
  parents.forEach((p, i) => {
    if (p < 0) return;
    const [[x0, y0], [x1, y1]] = [at[p], at[i]];
    root.append(svg("path", { class: "edge walked", d: y0 === y1 ? `M${x0} ${y0}H${x1}` : `M${x0} ${y0}C${x0} ${y1} ${x0} ${y1} ${x1} ${y1}` }));
  });
  const visits = parents.map(() => []);
  const [drawn, text] = [new Set(), parents.map(() => "the problem")];
  let [here, order] = [0, 0];
  for (const [kind, node, part] of segments) {
    if (kind === "backtrack") {
      if (here !== node && !drawn.has(`${here} ${node}`)) root.append(goBack(at[here], at[node]));
      drawn.add(`${here} ${node}`);
    } else if (kind === "step" && node !== 0 && part.trim()) {
      visits[node].push(++order);
      text[node] = part.trim();
    }
    here = node;
  }
  const nodes = new Map();
  at.forEach(([x, y], i) => {
    const kind = verdicts[i] === null ? "open" : verdicts[i] ? "right" : "wrong";
    const label = `${text[i]}${kind === "open" ? "" : `, ${kind}`}`;
    const g = svg("g", { class: `spot ${kind}`, role: "button", "aria-label": i ? `${visits[i].join(" and ")}: ${label}` : label, "data-id": i },
      i ? svg("circle", { cx: x, cy: y, r: 10 }) : svg("rect", { x: x - 8, y: y - 8, width: 16, height: 16, rx: 3 }),
      i > 0 && svg("text", { x, y: y + 3.8, "text-anchor": "middle", text: visits[i][0] }),
      kind !== "open" && verdictMark(kind, x + 9, y - 8, 5.5));
    tipOn(g, () => [text[i], visits[i].length > 1 && { label: "tried again", value: `${visits[i].length - 1} times` }, kind !== "open" && `attempt ends here: ${kind}`].filter(Boolean));
    for (const enter of ["pointerenter", "focus"]) g.addEventListener(enter, () => light(i));
    for (const leave of ["pointerleave", "blur"]) g.addEventListener(leave, () => light(null));
    nodes.set(i, g);
    root.append(g);
  });
  rove(nodes, 0, (i, key) => ({ ArrowRight: kids[i][0], ArrowLeft: parents[i], ArrowDown: i + 1, ArrowUp: i - 1 })[key]);
  holder.replaceChildren(root);
  return nodes;
}
/** From the foot of a node back to the foot of an earlier one. */
function goBack([x0, y0], [x1, y1]) {
  const [fx, fy, tx, ty] = [x0, y0 + 10, x1 + 3, y1 + 11];
  const low = Math.max(fy, ty) + 9;
  return svg("g", { class: "jump" }, svg("path", { d: `M${fx} ${fy}C${fx} ${low} ${tx + 8} ${low} ${tx} ${ty}` }),
    svg("path", { class: "jump-head", d: `M${tx - 4} ${ty + 5}L${tx} ${ty}L${tx + 5} ${ty + 3.5}` }));
}

/** The graph of an answer above its text, wired so that pointing at one marks the other. */
function graphAndText(answer, label) {
  let nodes = new Map();
  const parts = answer.segments.map(([kind, node, text]) => ({ node, span: el("span", { class: "part " + kind }, marked(text.replace(/^ /gm, ""))) }));
  const light = (id, from) => {
    for (const [key, g] of nodes) g.classList.toggle("lit", key === id);
    for (const p of parts) p.span.classList.toggle("lit", id !== null && p.node === id);
    const to = parts.find((p) => p.node === id);
    if (from === "graph" && to && id) reveal(to.span, pre);
  };
  for (const p of parts) {
    p.span.addEventListener("pointerenter", () => light(p.node, "text"));
    p.span.addEventListener("pointerleave", () => light(null, "text"));
  }
  const pre = el("pre", { tabindex: "0", "aria-label": label }, parts.map((p) => p.span));
  const holder = el("div", { class: "answer-graph" });
  onWidth(holder, (width) => { nodes = drawGraph(holder, answer, width, (id) => light(id, "graph")); });
  return [answer.parents.length > 1 && holder, pre];
}
