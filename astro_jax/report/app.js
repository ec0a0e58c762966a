// Puts every section on the page. A section that fails says so and leaves the others alone; one without content is hidden.

const SECTIONS = { // [name in the contents, {id of an element: what makes its content}]
  runs: ["Runs side by side", { "runs-section": runsSection }],
  results: ["Results", { "results-table": resultsTable, "results-differences": () => differencesFigure("held-out"), "how-to-read": howToRead }],
  suites: ["Suites", { "suite-tables": suiteTables }],
  accuracy: ["Tokens", { "accuracy-figure": accuracyFigure }],
  behaviour: ["Behaviour", { "behaviour-figures": behaviourFigures }],
  errors: ["Errors", { "error-figures": errorFigures }],
  difficulty: ["Difficulty", { "difficulty-figures": difficultyFigures }],
  training: ["Training", { "training-figures": trainingFigures }],
  rollouts: ["Completions", { "rollout-explorer": rolloutExplorer }],
  data: ["Data", { "data-tables": dataTables }],
  trees: ["Trees and traces", { "tree-explorer": treeExplorer }],
  answers: ["Answers", { "answer-explorer": answerExplorer }],
  provenance: ["Provenance", { "provenance-tables": provenanceTables }],
};
function drawSections(sections) {
  for (const section of sections) {
    let empty = true;
    for (const [id, make] of Object.entries(SECTIONS[section][1])) {
      try {
        const content = make();
        put(byId(id), content);
        empty = empty && content === null;
      } catch (error) {
        console.error(id, error);
        put(byId(id), absent(`This part could not be drawn: ${error.message}`));
        empty = false;
      }
    }
    byId(section).hidden = empty;
  }
  const shown = Object.keys(SECTIONS).filter((id) => !byId(id).hidden);
  put(byId("contents"), shown.map((id) => el("a", { href: "#" + id, text: SECTIONS[id][0] })));
}
const ofOneRun = Object.keys(SECTIONS).filter((id) => id !== "runs");
drawSections(Object.keys(SECTIONS));
put(byId("run-picker"), runPicker(() => drawSections(ofOneRun)));
