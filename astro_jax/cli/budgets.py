"""`astro budgets RUN|MODEL ...`: one answer against other uses of as many tokens."""

from __future__ import annotations

import argparse
import json
import sys

from astro_jax import distributed
from astro_jax.cli import model_suites
from astro_jax.errors import AstroError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("models", nargs="+", metavar="RUN|MODEL|key=value",
                        help="the folder of a run, for its ASTRO and its Direct model; or models, first the one whose "
                        "answers search: checkpoints, Hugging Face folders, .gguf files, shipped models, or org/name "
                        "on the hub; and changes of the settings, as in search.num_rollouts=2")  # fmt: skip
    parser.add_argument("--suite", nargs="+", action="extend", default=[], metavar="NAME",
                        help="suites, as for `astro eval` (default: the held-out problems of the run)")  # fmt: skip
    parser.add_argument("--n", type=int, metavar="N",
                        help="answers of the first model to each problem; the curves reach the tokens of N answers: "
                        "eval.num_samples=N (default 16)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="PROBLEMS", help="only the first problems: eval.limit=PROBLEMS")
    parser.add_argument("--max-tokens", type=int, metavar="T", help="most tokens of an answer: eval.max_tokens=T")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace, command: str) -> int:
    """Measure models at equal budgets, print the tables, and write budgets.json, budgets.md and budgets.html."""
    from astro_jax import compilation_cache, run_lock, storage
    from astro_jax import mesh as meshes
    from astro_jax.budgets import measure, models, page
    from astro_jax.evaluate.model_suites import folder_name

    (names, first), (suites, second) = map(model_suites.split_overrides, (args.models, args.suite))
    if not names:
        raise AstroError("budgets: name a run or a model, as in runs/quickstart")
    run = storage.absolute(names[0])
    found = models.find(names)
    out = f"{run}/budgets" if models.is_run(run) else f"runs/budgets/{folder_name(names[0])}"
    options = {"num_samples": args.n, "limit": args.limit, "max_tokens": args.max_tokens}
    changes = [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    changes += [f"eval.suites={json.dumps(suites)}", f"out={json.dumps(out)}"]
    configs = [model.config([*changes, *first, *second, *args.overrides]) for model in found]
    sets = measure.load_sets(found, configs[0])
    folder = storage.absolute(configs[0].out)
    meshes.set_cpu_device_count(max(c.mesh.num_devices for c in configs))  # before any use of JAX
    with run_lock.hold(folder, command), compilation_cache.use(folder):
        results = measure.run(found, configs, sets, folder)
        storage.write_text(folder / "budgets.md", page.markdown_tables(results))
        storage.write_text(folder / "budgets.html", page.html(" and ".join(names), command, results))
    if distributed.is_main_process():
        print(json.dumps(results) if args.json else page.markdown_tables(results))
        print(f"page: {folder / 'budgets.html'}", file=sys.stderr)
    return 0
