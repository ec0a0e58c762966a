// Puts every section on the page. A section that fails says so and leaves the others alone.

const SECTIONS = [
  ["results-table", resultsTable], ["how-to-read", howToRead], ["accuracy-figure", accuracyFigure], ["training-figures", trainingFigures],
  ["rollout-explorer", rolloutExplorer],
  ["data-tables", dataTables], ["tree-explorer", treeExplorer], ["answer-explorer", answerExplorer], ["provenance-tables", provenanceTables],
];
for (const [id, make] of SECTIONS) {
  try {
    fill(byId(id), {}, [make()]);
  } catch (error) {
    console.error(id, error);
    byId(id).append(absent(`This part could not be drawn: ${error.message}`));
  }
}

const SHORT = { results: "Results", accuracy: "Tokens", training: "Training", rollouts: "Completions", data: "Data", trees: "Trees and traces", answers: "Answers", provenance: "Provenance" };
fill(byId("contents"), {}, Object.entries(SHORT).map(([id, text]) => el("a", { href: "#" + id, text })));
