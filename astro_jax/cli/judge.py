"""`astro judge MODEL ANSWERS`: how often a model is fooled as a judge."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from astro_jax import distributed
from astro_jax.errors import AstroError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="the judge, as for `astro eval MODEL --suite`")
    parser.add_argument("answers", metavar="ANSWERS",
                        help="answers with exact verdicts: runs/eval/MODEL/SUITE, or RUN/eval/MODEL")  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="changes of the settings, as in prompts.evaluate=rubric.txt or out=DIR")  # fmt: skip
    parser.add_argument("--n", type=int, default=8, metavar="N", help="judgements of each answer (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="T",
                        help="most tokens of a judgement (default %(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="ANSWERS", help="only the first answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, command: str) -> int:
    """Judge answers, print the rates, and write them beside the answers."""
    from astro_jax import config, prompts, run_lock, storage
    from astro_jax.evaluate import judged, model_suites
    from astro_jax.judge import Judge
    from astro_jax.llama import paths

    if min(args.n, args.max_tokens, 1 if args.limit is None else args.limit) < 1:
        raise AstroError("judge: --n, --max-tokens and --limit are at least 1")
    answers_folder = storage.absolute(args.answers)
    model = paths.resolve(args.model, download=True)
    out = f"out={json.dumps(str(answers_folder / f'judge-{model_suites.folder_name(args.model)}'))}"
    chat = model_suites.settings_of(model, model_suites.run_config(model))
    c = config.load(None, [*chat, out, *args.overrides])
    answers = judged.read(answers_folder, c.verify.report_rule)[: args.limit]
    rubric = prompts.load(c.prompts)["evaluate"]
    settings = model_suites.model_settings(c, args.model, model) | {
        "answers": str(answers_folder), "rule": c.verify.report_rule, "rubric": rubric.source,
        "verdicts": [*c.verify.verdicts], "n": args.n, "max_tokens": args.max_tokens, "limit": args.limit,
    }  # fmt: skip
    folder = storage.absolute(c.out)
    with run_lock.hold(folder, command):
        judge = Judge(model_suites.load_policy(c, model), rubric, c.verify.verdicts, args.n, args.max_tokens)
        result = judged.measure(folder, answers, judge, settings)
    if distributed.is_main_process():
        print(json.dumps(result) if args.json else _table(result))
        print(f"results: {folder}", file=sys.stderr)
    return 0


def _table(result: dict[str, Any]) -> str:
    from astro_jax import markdown
    from astro_jax.percent import points, rate

    rows = [
        (f"{100 * r['share']:.0f}", *(rate(r[name]) if r[name] else "" for name in ("fooled", "missed")),
         points(r["agreement"]))
        for r in result["by_share"]
    ]  # fmt: skip
    header = ("judgements that approve, at least %", "wrong answers that pass %", "right answers that fail %",
              "agreement %")  # fmt: skip
    by_error = ", ".join(f"{name} {points(share)}%" for name, share in result["fooled_by_error"].items())
    return "\n".join([
        f"{result['answers']} answers, {result['right']} right; "
        f"{points(result['unread'])}% of the judgements have no verdict", "", markdown.table(header, rows),
        *(["", f"wrong answers that pass unanimously, by error class: {by_error}"] if by_error else []),
    ])  # fmt: skip
