"""`astro eval MODEL --suite NAME`: any model on suites, without a config of a run."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from astro_jax import distributed, percent
from astro_jax.errors import AstroError

if TYPE_CHECKING:
    from rich.table import Table

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")  # a suite's name has a colon before any "="


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. With --suite, CONFIG is a model."""
    group = parser.add_argument_group(
        "any model on suites",
        "With --suite, CONFIG is a MODEL: a checkpoint, a Hugging Face folder, a .gguf file, a shipped model, or "
        "org/name on the hub. The results lie in out=DIR.",
    )
    group.add_argument("--suite", nargs="+", action="extend", default=[], metavar="NAME",
                       help="math500, amc2023, aime2024, aime2025, aime2026, gsm8k, math-test:level=5, "
                       "countdown:count=4, gym:chain_sum, a .jsonl, .json or .parquet file, or org/name")  # fmt: skip
    group.add_argument("--n", type=int, metavar="N", help="answers to each problem: eval.num_samples=N (default 16)")
    group.add_argument("--limit", type=int, metavar="PROBLEMS", help="only the first problems: eval.limit=PROBLEMS")
    group.add_argument("--max-tokens", metavar="T[,T...]",
                       help="most tokens of an answer; with several, the same answers are judged at each")  # fmt: skip
    group.add_argument("--min-backtracks", type=int, metavar="N",
                       help="answers with fewer backtracks have to start again: eval.min_backtracks=N")  # fmt: skip
    group.add_argument("--against", metavar="DIR", help="also the paired differences from the evaluation in DIR")
    group.add_argument("--lm-eval", metavar="DIR", help="also write the results in lm-evaluation-harness's form")
    group.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, command: str) -> int:
    """Measure a model on suites, and print a table.

    Raises:
      AstroError: for a config in the place of a model, and options that need --suite.
    """
    from astro_jax import config, run_lock, storage
    from astro_jax.evaluate import lm_eval, model_suites
    from astro_jax.llama import paths

    model = args.config
    is_shipped = (paths.SHIPPED_MODELS / model).is_dir()  # a recipe and a model may have the same name
    if (model in config.recipes() and not is_shipped) or model.endswith((".yaml", ".yml")):
        raise AstroError(f"eval: {model} is a config, and --suite measures a model; write eval.suites=[...] in it")
    folder = paths.resolve(model, download=True)
    of_run = model_suites.run_config(folder)
    names, among_suites = split_overrides(args.suite)
    overrides = among_suites + args.overrides
    own = [f"eval.suites={json.dumps(names)}", *_options(args), f"out=runs/eval/{model_suites.folder_name(model)}"]
    c = config.load(None, [*own, *model_suites.settings_of(folder, of_run), *overrides])
    out = storage.absolute(c.out)
    with run_lock.hold(out, command):
        against = storage.absolute(args.against) if args.against else None
        results = model_suites.run(c, model, folder, of_run, out, against)
        written = lm_eval.export(out, storage.absolute(args.lm_eval)) if args.lm_eval else None
    if distributed.is_main_process():
        print(json.dumps(results)) if args.json else print_results(results)
        print(f"results: {out}", file=sys.stderr)
        if written is not None:
            print(f"written: {written}", file=sys.stderr)
    return 0


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words that follow an option, or stand in its place, into names and overrides ("section.key=value")."""
    return [x for x in words if not _OVERRIDE.match(x)], [x for x in words if _OVERRIDE.match(x)]


def require_suite(args: argparse.Namespace) -> None:
    """Check that no option of suites is given without --suite.

    Raises:
      AstroError: with the option's name.
    """
    for name in ("n", "limit", "max_tokens", "min_backtracks", "against", "lm_eval", "json"):
        value = getattr(args, name)
        if value is not None and value is not False:
            raise AstroError(f"eval: --{name.replace('_', '-')} needs --suite; for a run, set the keys of eval")


def _options(args: argparse.Namespace) -> list[str]:
    """The options as overrides of a config."""
    overrides = [] if args.n is None else [f"eval.num_samples={args.n}"]
    overrides += [] if args.limit is None else [f"eval.limit={args.limit}"]
    overrides += [] if args.min_backtracks is None else [f"eval.min_backtracks={args.min_backtracks}"]
    if args.max_tokens is not None:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", args.max_tokens):
            raise AstroError(f"--max-tokens {args.max_tokens}: write numbers with commas, as in 256,1024")
        limits = sorted({int(x) for x in args.max_tokens.split(",")})
        overrides += [f"eval.max_tokens={limits[-1]}", f"eval.token_limits={limits[:-1]}"]
    return overrides


def print_results(results: dict[str, Any]) -> None:
    """Print results.json of an evaluation as a table, one row a suite, and what differs between rules and models."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(results))
    for name, result in results["suites"].items():
        if floor := result["settings"]["min_backtracks"]:
            forced = percent.points(result["forced_to_go_back"])
            console.print(f"{name}, backtracks at least {floor}: {forced}% of answers forced", soft_wrap=True)
        for d in result["differences"]:
            alone = ", ".join(f"{n} {key}" for key, n in d.items() if key.startswith("right by"))
            console.print(f"{name}, {' and '.join(d['rules'])} on the same answers: {alone}", soft_wrap=True)
        for row in result["token_limits"]:
            rates = ", ".join(f"{rule} {percent.rate(rate)}" for rule, rate in row["pass@1"].items())
            console.print(
                f"{name} at {row['max_tokens']} tokens: {rates}; {100 * row['truncated']:.1f}% cut off", soft_wrap=True
            )
    for name, d in results.get("differences", {}).items():
        interval = f"[{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" if d else "no problem in common"
        mean = f"{100 * d['difference']:+.1f} points {interval} over {d['n']} problems" if d else interval
        console.print(f"{name} against {results['against']}: {mean}", soft_wrap=True)


def _table(results: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{results['model']}, seed {results['settings']['seed']}, 95% intervals over problems")
    columns = ("suite", "problems x n", "rule", "pass@1 %", "pass@n %", "maj@n %", "cut off %", "unparsed %",
               "failed %", "tokens")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("suite", "rule") else "right", overflow="fold")
    for name, r in results["suites"].items():
        n = str(r["n"])
        for rule, figures in r["rules"].items():
            main = rule == r["rule"]
            votes = [percent.rate(r[key][n]) for key in ("pass@k", "maj@k")] if main else ["", ""]
            shares = [f"{100 * x:.1f}" for x in (r["truncated"], figures["unparsed"], figures["failed"])]
            table.add_row(
                *((name, f"{r['prompts']} x {n}") if main else ("", "")), rule, percent.rate(figures["pass@1"]), *votes,
                *shares, f"{r['tokens']['mean']:.1f}" if main else "",
            )  # fmt: skip
    return table
