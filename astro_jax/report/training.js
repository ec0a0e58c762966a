// Curves of training, and completions against steps of RL.

function trainingFigures() {
  const of = (stage, key) => {
    const m = DATA.metrics[stage];
    let [xs, ys] = [m ? m.columns.step : [], (m && m.columns[key]) || []];
    // Held-out prompts are measured at some steps only: the curve joins these.
    if (key.startsWith("eval_")) [xs, ys] = [xs.filter((_, i) => isNumber(ys[i])), ys.filter(isNumber)];
    return { model: stage, xs, ys, every: m ? m.every : 1 };
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
  const own = (name) => (DATA.metrics[name] ? [name] : []);
  const sft = ["direct-sft", "astro-sft", ...own("sft")];
  const rl = ["direct-rl", "astro-rl", ...own("grpo")];
  const more = () => [
    pair(rl, "Mean reward", "reward_mean", { unit: "reward of a completion", format: plain, zero: false }),
    pair(rl, "Cut off at the length limit", "truncated_rate", { unit: "responses", format: share }),
    pair(rl, "Entropy", "entropy", { unit: "nats per token", format: plain }),
    pair(rl, "Gap between sampler and trainer", "logp_gap", { unit: "log-probability, nats", format: plain }),
    pair(rl, "Ratios clipped", "clip_fraction", { unit: "tokens", format: (v, long) => (long ? pct(v, 2) : share(v)) }),
    pair(rl, "Gradient norm", "grad_norm", { unit: "norm before clipping", format: plain }),
  ];
  return [
    ...group("Supervised fine-tuning", sft, () => [
      pair(sft, "Loss", "loss", { unit: "nats per token", format: plain, zero: false }),
      pair(sft, "Loss of held-out examples", "eval_loss", { unit: "nats per token", format: plain, zero: false }),
      pair(sft, "Speed", "tokens_per_s", { unit: "tokens per second", format: plain })]),
    ...group("Reinforcement learning", rl, () => [
      pair(rl, "Solve rate", "solve_rate", { unit: "training problems solved", format: share }),
      pair(rl, "Held-out solve rate", "eval_solve_rate", { unit: "held-out problems solved, pass@1", format: share }),
      pair(rl, "Held-out solve rate, greedy", "eval_solve_rate_greedy", { unit: "held-out problems solved", format: share }),
      pair(rl, "Response length", "mean_tokens", { unit: "tokens per response", format: plain }),
      pair(rl, "Backtracks", "mean_backtracks", { unit: "backtracks per response", format: plain }),
      pair(rl, "Repeated attempts", "repeat_rate", { unit: "responses that repeat an attempt", format: share }),
      correlationFigure(rl, "", "Backtracks against solve rate", "training problems solved"),
      correlationFigure(rl, "eval_", "Backtracks against held-out solve rate", "held-out problems solved, pass@1")]),
    rl.some((s) => DATA.metrics[s]) && el("details", {}, el("summary", { text: "Is the training healthy? Reward, entropy, sampler gap, clipping" }), el("div", { class: "grid" }, more())),
    el("p", { class: "note", text: smoothingNote() }),
  ];
}
function smoothingNote() {
  const thinned = Object.entries(DATA.metrics).filter(([, m]) => m.every > 1).map(([s, m]) => `${nameOf(s)}: means of ${m.every} steps`);
  return "Pale lines are the logged values, strong lines their moving mean." + (thinned.length ? ` Long runs are thinned (${thinned.join("; ")}).` : "");
}
/** prefix: of the two metrics, "" for the completions of a step, "eval_" for the held-out prompts. */
function correlationFigure(stages, prefix, title, unit) {
  const series = stages.filter((s) => DATA.metrics[s]).map((s) => {
    const c = DATA.metrics[s].columns;
    return { model: s, steps: c.step, xs: c[`${prefix}mean_backtracks`] || [], ys: c[`${prefix}solve_rate`] || [] };
  }).filter((s) => s.xs.length && s.ys.length);
  if (!series.length) return null;
  const rs = series.map(({ model }) => {
    const { r, n } = DATA.pearson[prefix][model];
    return `${nameOf(model)}: ${r === null ? "r has no value, as one side does not vary" : `Pearson r = ${r.toFixed(2).replace("-", "−")} over ${num(n)} steps`}`;
  });
  const every = Math.max(...series.map((s) => DATA.metrics[s.model].every));
  const dots = every > 1 ? `A dot is the mean of ${every} steps` : "A dot is one step";
  return scatter(title, series, {
    x: { title: "backtracks per response", format: (v, long) => num(v, long ? 2 : 1) },
    y: { title: unit, format: (v, long) => pct(v, long ? 1 : 0) },
    note: `${rs.join(". ")}. ${dots}, later steps darker.`,
  });
}
