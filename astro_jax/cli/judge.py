"""`astro judge`: how often a model is fooled as a judge. `astro errors`: a model names the errors of wrong answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from astro_jax import distributed
from astro_jax.errors import AstroError

if TYPE_CHECKING:
    from astro_jax.judge import Judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `astro judge`."""
    parser.add_argument("model", metavar="MODEL", help="the judge, as for `astro eval MODEL --suite`")
    parser.add_argument("answers", metavar="ANSWERS",
                        help="answers with exact verdicts: runs/eval/MODEL/SUITE, or RUN/eval/MODEL")  # fmt: skip
    _add_options(parser, "evaluate")


def add_errors_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `astro errors`."""
    parser.add_argument("model", metavar="MODEL", help="the judge, as for `astro eval MODEL --suite`")
    parser.add_argument("answers", metavar="ANSWERS", help="answers to a suite: runs/eval/MODEL/SUITE")
    parser.add_argument("--labels", metavar="FILE",
                        help="compare with classes by hand: JSONL of problem_id, sample and error")  # fmt: skip
    _add_options(parser, "classify")


def _add_options(parser: argparse.ArgumentParser, rubric: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help=f"changes of the settings, as in prompts.{rubric}=rubric.txt or out=DIR")  # fmt: skip
    parser.add_argument("--n", type=int, default=8, metavar="N", help="judgements of each answer (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="T",
                        help="most tokens of a judgement (default %(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="L", help="read only the first L answers, right ones too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, command: str) -> int:
    """Judge answers, print the rates, and write them beside the answers."""
    from astro_jax.evaluate import judged

    judge = _JudgeCommand("judge", args, "evaluate", judged.folder_of)
    rule = judge.c.verify.report_rule
    answers = judged.read(judge.answers, rule)[: args.limit]

    def measure(model: Judge, settings: dict[str, Any]) -> dict[str, Any]:
        return judged.measure(judge.out, answers, model, settings | {"rule": rule})

    return judge.run(command, judge.c.verify.verdicts, measure, _table)


def run_errors(args: argparse.Namespace, command: str) -> int:
    """Let a model name the errors that the rules leave open, and print and write the classes."""
    from astro_jax import storage
    from astro_jax.evaluate import judged_errors

    judge = _JudgeCommand("errors", args, "classify", judged_errors.folder_of)
    wrong, answers = judged_errors.read(judge.answers, args.limit)
    labels = judged_errors.read_labels(storage.absolute(args.labels), wrong) if args.labels else {}

    def measure(model: Judge, settings: dict[str, Any]) -> dict[str, Any]:
        return judged_errors.measure(judge.out, wrong, answers, model, settings, labels)

    return judge.run(command, tuple(judged_errors.VERDICTS), measure, _errors_table)


class _JudgeCommand:
    """What both commands share: the settings of the judge, and the course of a command."""

    def __init__(
        self, name: str, args: argparse.Namespace, rubric: str, folder_of: Callable[[epath.Path, str], epath.Path]
    ):
        from astro_jax import config, prompts, storage
        from astro_jax.evaluate import model_suites
        from astro_jax.llama import paths

        if min(args.n, args.max_tokens, 1 if args.limit is None else args.limit) < 1:
            raise AstroError(f"{name}: --n, --max-tokens and --limit are at least 1")
        self.args, self.answers = args, storage.absolute(args.answers)
        self.model = paths.resolve(args.model, download=True)
        out = f"out={json.dumps(str(folder_of(self.answers, args.model)))}"
        chat = model_suites.settings_of(self.model, model_suites.run_config(self.model))
        self.c = config.load(None, [*chat, out, *args.overrides])
        self.out, self.rubric = storage.absolute(self.c.out), prompts.load(self.c.prompts)[rubric]

    def run(
        self,
        command: str,
        verdicts: Sequence[str],
        measure: Callable[..., dict[str, Any]],
        table: Callable[[dict[str, Any]], str],
    ) -> int:
        """Load the model, measure under the lock of the results, and print."""
        from astro_jax import run_lock
        from astro_jax.evaluate import model_suites
        from astro_jax.judge import Judge

        args = self.args
        settings = model_suites.model_settings(self.c, args.model, self.model) | {
            "answers": str(self.answers), "rubric": self.rubric.source, "verdicts": [*verdicts], "n": args.n,
            "max_tokens": args.max_tokens, "limit": args.limit,
        }  # fmt: skip
        with run_lock.hold(self.out, command):
            policy = model_suites.load_policy(self.c, self.model)
            result = measure(Judge(policy, self.rubric, verdicts, args.n, args.max_tokens), settings)
        if distributed.is_main_process():
            print(json.dumps(result) if args.json else table(result))
            print(f"results: {self.out}", file=sys.stderr)
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


def _errors_table(result: dict[str, Any]) -> str:
    from astro_jax import markdown
    from astro_jax.percent import points, rate

    rows = [(name, points(result["by_rules"][name]), points(share)) for name, share in result["errors"].items()]
    lines = [
        f"{result['answers']} answers, {result['wrong']} wrong; the rules leave the class of {result['open']} open",
        f"{points(result['unread'])}% of the judgements name no class; the judge changes {points(result['changed'])}% "
        "of the open classes",
        "", markdown.table(("error", "by rules, % of all answers", "with the judge %"), rows),
    ]  # fmt: skip
    if "agreement" in result:
        groups = {"all": "all wrong answers", "open": "those that the rules leave open"}
        compared = [
            (groups[name], str(x["labelled"]), rate(x["rules"]), rate(x["judge"]))
            for name, x in result["agreement"].items() if x
        ]  # fmt: skip
        header = ("agreement with the labels", "labelled", "rules %", "with the judge %")
        lines += ["", markdown.table(header, compared)]
    return "\n".join(lines)
