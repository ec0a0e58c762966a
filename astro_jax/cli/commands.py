"""What each command does. Libraries are imported when a command runs, so that `astro --help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from astro_jax import distributed, percent
from astro_jax.cli import model_suites, own_model
from astro_jax.errors import AstroError
from astro_jax.stages import DEFAULT_STAGES, PLANNED

if TYPE_CHECKING:
    from astro_jax import config as cfg


def run(args: argparse.Namespace, command: str) -> int:
    """Run stages of a config. After the report, print the results."""
    from astro_jax import pipeline, storage

    c, stages = _config(args)
    shard = _shard(args.shard) if getattr(args, "shard", None) is not None else (0, 1)
    run = pipeline.execute(c, command, stages, shard, args.max_hours)
    if "report" in (stages or c.stages) and distributed.is_main_process():
        _print_results(storage.read_json(run.folder / "results.json"))
        page = run.folder / "report.html"
        print(f"report: {page}")
        if sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(f"file://{page.absolute()}")  # only where a person sits in front of a screen
    return 0


def _config(args: argparse.Namespace) -> tuple[cfg.Config, tuple[str, ...]]:
    """The config of a command that runs stages, and these stages; () for all of the config's.

    An override that changes nothing is named, since a typing error cannot be told from an experiment.
    """
    from astro_jax import config, stage_inputs

    own = own_model.config(args, args.own_stage) if hasattr(args, "own_stage") else None
    if own is not None:
        return own, own.stages
    c = config.load(args.config, args.overrides)
    if distributed.is_main_process():
        for key in stage_inputs.without_effect(c, [text.partition("=")[0] for text in args.overrides]):
            print(
                f"{key}: no stage reads this key with the other settings of the run; it changes nothing",
                file=sys.stderr,
            )
    for chosen in (c.stages, DEFAULT_STAGES):  # `sft` stands for the SFT stages of the run
        if stages := tuple(stage for stage in args.stages if stage in chosen):
            return c, stages
    return c, args.stages


def evaluate(args: argparse.Namespace, command: str) -> int:
    """Evaluate the models of a run, or with --suite any model on suites."""
    if args.suite:
        return model_suites.run(args, command)
    model_suites.require_suite(args)
    return run(args, command)


def sweep(args: argparse.Namespace, command: str) -> int:
    """Run variants of a config, and compare each with the default."""
    from etils import epath

    from astro_jax import storage
    from astro_jax.sweep import page, variants
    from astro_jax.sweep import run as sweeping

    seeds = args.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        raise AstroError(f"--seeds {args.seeds}: write numbers with commas, as in 0,1,2")
    named = next((text.partition("=")[2] for text in reversed(args.overrides) if text.startswith("out=")), None)
    out = storage.absolute(named or f"runs/sweep-{epath.Path(args.config).stem}")
    runs = variants.make_runs(out, variants.parse(args.config, args.vary), list(map(int, seeds)), args.overrides)
    counts = sweeping.plan(runs)
    print("{runs} runs, {stages} stages, {different} of them different".format(**counts), file=sys.stderr)
    if args.dry_run:
        return 0
    rows = sweeping.execute(out, runs, command)
    if distributed.is_main_process():
        print(page.markdown_tables(rows))
        print(f"page: {out / 'sweep.html'}")
    return 0


def show(args: argparse.Namespace, command: str) -> int:
    """Print the stages of a run as a tree, or completions of a stage of RL."""
    from rich.console import Console

    from astro_jax.report import lineage, rollout_texts, run_folder

    run_folder.require(args.run)
    if args.step is not None and not args.rollouts:
        raise AstroError("--step: name the stage too, as in --rollouts astro-rl")
    if args.rollouts:
        groups = rollout_texts.read(args.run, args.rollouts, args.step)
        description: dict[str, Any] = {"groups": groups}
        drawing: Any = rollout_texts.render(groups)
    else:
        description = lineage.describe(args.run)
        drawing = lineage.render(description)
    if args.json:
        print(json.dumps(description))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(drawing)
    return 0


def compare(args: argparse.Namespace, command: str) -> int:
    """Write one page about several runs, and print their models with the paired differences, or pooled over seeds."""
    if args.pool:
        return _pool(args, command)
    if args.judge is not None:
        raise AstroError("compare: --judge needs --pool")
    from astro_jax import report, storage
    from astro_jax.report import run_folder, side_by_side

    paths = [storage.absolute(path) for path in args.runs]
    if len(set(paths)) < max(2, len(paths)):
        raise AstroError("compare: name two different runs or more, as in astro compare runs/a runs/b")
    for path in paths:
        run_folder.require(path)
    report.write(paths, storage.absolute(args.out))
    names, compared = side_by_side.names(paths), side_by_side.compare([run_folder.read(path) for path in paths])
    print(json.dumps({"runs": names} | compared) if args.json else side_by_side.markdown_tables(names, compared))
    print(f"page: {args.out}", file=sys.stderr)
    return 0


def _pool(args: argparse.Namespace, command: str) -> int:
    """Print the figures of each model over its seeds, and write them as a page."""
    from astro_jax import storage
    from astro_jax.evaluate import pooled
    from astro_jax.report import pooled_tables

    figures = pooled.pool([storage.absolute(path) for path in dict.fromkeys(args.runs)], args.judge)
    storage.write_text(storage.absolute(args.out), pooled_tables.html(command, figures))
    print(json.dumps(figures) if args.json else pooled_tables.markdown_tables(figures))
    print(f"page: {args.out}", file=sys.stderr)
    return 0


def status(args: argparse.Namespace, command: str) -> int:
    """Print how far a run has come, its speed, goodput and chip-hours."""
    from astro_jax import status, storage

    if args.price is not None and args.price < 0:
        raise AstroError("status: --price is at least 0")
    description = status.describe(storage.absolute(args.run), args.price)
    print(json.dumps(description) if args.json else status.render(description))
    return 0


def check(args: argparse.Namespace, command: str) -> int:
    """Print what would stop a run, a line each. Exit code 2 when there is something."""
    from astro_jax import check, config

    lines = check.find(config.load(args.config, args.overrides), topology_name=args.topology)
    if args.json:
        print(json.dumps({"problems": lines}))
    else:
        print("\n".join(lines) or "nothing stands in the way of this run")
    return 2 if lines else 0


def problems(args: argparse.Namespace, command: str) -> int:
    """Print what a run would draw from its source of problems."""
    from astro_jax import config
    from astro_jax.problems import description

    described = description.describe(config.load(args.config, args.overrides))
    print(json.dumps(described, ensure_ascii=False) if args.json else description.format_description(described))
    return 0


def traces(args: argparse.Namespace, command: str) -> int:
    """Make the traces of a run, and export them where --out or --push asks for it."""
    from etils import epath

    from astro_jax import pipeline, storage
    from astro_jax.traces import export

    if args.out:
        storage.require_absent(epath.Path(args.out))
    export.check(out=bool(args.out), push=bool(args.push))
    args.overrides += [f"traces.clone={args.clone}"] if args.clone else []
    c, stages = _config(args)
    run = pipeline.execute(c, command, stages, (0, 1), args.max_hours)
    if not distributed.is_main_process():
        return 0
    if args.out:
        export.write(run.folder_of("traces"), epath.Path(args.out))
        print(f"written: {args.out}")
    if args.push:
        print(f"uploaded: {export.push(run.folder_of('traces'), args.push)}")
    return 0


def _shard(text: str) -> tuple[int, int]:
    """Read "i/n" as two numbers."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise AstroError(f"--shard {text}: write i/n with i from 0 to n - 1, as in 0/4")
    return int(i), int(n)


def import_model(args: argparse.Namespace, command: str) -> int:
    """Check a model, then write it as a Hugging Face folder."""
    from etils import epath

    from astro_jax import importing, storage

    destination = epath.Path(args.destination)
    storage.require_absent(destination)
    model = importing.check(args.source, destination, args.dtype, download=not args.dry_run)
    print(model)
    if not args.dry_run:
        importing.write(model, destination)
        print(f"written: {args.destination}")
    return 0


def export(args: argparse.Namespace, command: str) -> int:
    """Write a checkpoint as a Hugging Face folder with a model card."""
    from etils import epath

    from astro_jax.llama import checkpoint, hf, reference, tokenizer
    from astro_jax.report import model_card

    def check(folder: epath.Path) -> None:
        print(f"transformers agrees: logits differ by {reference.compare(folder, config, params):.1g} at most")

    if args.verify:
        reference.require_torch("--verify torch")
    config, params = checkpoint.load(args.checkpoint, dtype=None)
    hf.write(
        epath.Path(args.destination), config, params, tokenizer.load(args.checkpoint),
        card=model_card.render(args.checkpoint, config), check=check if args.verify else None,
    )  # fmt: skip
    print(f"written: {args.destination}")
    return 0


def sample(args: argparse.Namespace, command: str) -> int:
    """Print continuations of a text."""
    from astro_jax import config
    from astro_jax.policy import Policy
    from astro_jax.sampler import SamplingParams

    if args.n < 1 or args.max_new_tokens < 1:
        raise AstroError("sample: --n and --max-new-tokens are at least 1")
    if args.system is not None and not args.chat:
        raise AstroError("sample: --system is for a chat; add --chat")
    if not args.prompt:
        raise AstroError("sample: --prompt is empty; write a text to continue")
    sampling = SamplingParams(
        max_tokens=args.max_new_tokens, temperature=0.0 if args.greedy else args.temperature, top_k=args.top_k,
        top_p=args.top_p, min_p=args.min_p, stop=tuple(args.stop),
    )  # fmt: skip
    chat = config.Chat(template=args.chat, system=args.system)
    policy = Policy.load(args.checkpoint, args.seed, max_num_seqs=min(args.n, 64), chat=chat)
    if args.chat and not policy.tokenizer.hf.chat_template:
        raise AstroError(f"sample: {args.checkpoint} has no chat template; leave out --chat")
    request = policy.request(args.prompt, args.n, "sample")
    tokens, positions = len(request.prompt_token_ids), policy.engine.config.max_positions
    if tokens + args.max_new_tokens > positions:
        advice = "shorten --prompt" if tokens >= positions else f"set --max-new-tokens {positions - tokens} or less"
        raise AstroError(
            f"sample: a prompt of {tokens} tokens and {args.max_new_tokens} new ones do not fit the model's "
            f"{positions} positions; {advice}"
        )
    (completions,) = policy.generate([request], sampling)
    for i, completion in enumerate(completions):
        if args.n > 1:
            print(f"--- {i + 1}")
        print(policy.tokenizer.decode(completion.token_ids.tolist()))
    return 0


def bench_sampler(args: argparse.Namespace, command: str) -> int:
    """Measure the sampler, and print the figures."""
    from astro_jax.bench import sampler
    from astro_jax.llama import reference
    from astro_jax.policy import Policy

    if args.compare == "torch":
        if args.quantization:
            raise AstroError("bench sampler: transformers has no weights in this int8 form; leave out --quantization")
        reference.require_torch("--compare torch")
    work = sampler.Workload(args.groups, args.samples, args.prompt, args.new, args.ragged)
    max_num_seqs = args.max_num_seqs if args.max_num_seqs is not None else min(args.groups * args.samples, 512)
    policy = Policy.load(
        args.model, max_num_seqs=max_num_seqs, kv_cache_gib=args.kv_cache_gib, block_size=args.block_size,
        quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype,
    )  # fmt: skip
    _print_figures(sampler.measure(policy, work, args.compare), args.json)
    return 0


def bench_search(args: argparse.Namespace, command: str) -> int:
    """Measure the search of a recipe on a synthetic policy, and print the figures."""
    from astro_jax import config
    from astro_jax.bench import search, synthetic

    if others := [x for x in args.overrides if not x.startswith("search.")]:
        raise AstroError(f"bench search: {', '.join(others)}: only keys of search count here")
    c = config.load(args.config, args.overrides)
    world = synthetic.World(args.lines, args.distinct, args.solve, args.unfinished, seed=args.seed)
    _print_figures(search.compare(world, c.search, args.trees, args.paper_trees), args.json)
    return 0


def bench_trees(args: argparse.Namespace, command: str) -> int:
    """Measure what follows a search: the store of synthetic trees, traces, data card and report; print the figures."""
    import tempfile

    from etils import epath

    from astro_jax import storage
    from astro_jax.bench import trees
    from astro_jax.llama import tokenizer

    work = trees.Workload(args.trees, args.nodes, args.lines, args.characters, args.paper, args.seed)
    with tempfile.TemporaryDirectory() if args.out is None else contextlib.nullcontext(args.out) as name:
        if args.out is not None:
            storage.require_absent(epath.Path(name))
        figures = trees.measure(storage.absolute(name), work, tokenizer.load(args.model))
    steps = figures if args.json else {k: v for k, v in figures.items() if k != "steps"} | figures["steps"]
    _print_figures(steps, args.json)
    return 0


def bench_sft(args: argparse.Namespace, command: str) -> int:
    """Measure a step of SFT, and print the figures."""
    from astro_jax.bench import sft
    from astro_jax.llama import checkpoint, reference, tokenizer

    if args.compare == "torch":
        reference.require_torch("--compare torch")
    work = sft.Workload(args.rows, args.length, args.steps)
    config, params = checkpoint.load(args.model)
    figures = sft.measure(config, params, tokenizer.load(args.model), work, args.dtype, args.compare)
    _print_figures(figures, args.json)
    return 0


def bench_grpo(args: argparse.Namespace, command: str) -> int:
    """Measure a step of GRPO, and print the figures."""
    from astro_jax.bench import grpo
    from astro_jax.llama import checkpoint, reference, tokenizer

    if args.compare == "trl":
        reference.require("trl", "--compare trl")
    work = grpo.Workload(args.prompts, args.samples, args.prompt, args.new, args.steps, args.micro_batch)
    config, params = checkpoint.load(args.model)
    _print_figures(grpo.measure(config, params, tokenizer.load(args.model), work, args.compare), args.json)
    return 0


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(figures) if as_json else "\n".join(f"{key}: {value}" for key, value in figures.items()))


def verify(args: argparse.Namespace, command: str) -> int:
    """Judge answers, a line each, in order."""

    from astro_jax.verify import stream

    if args.seconds <= 0 or args.memory <= 0 or args.workers < 0:
        raise AstroError("verify: --seconds and --memory are above 0, --workers at least 0")
    with contextlib.ExitStack() as stack:
        lines = sys.stdin if args.file == "-" else stack.enter_context(stream.open_lines(args.file))
        limits = (args.seconds, args.memory, args.workers)
        try:
            for line in stream.verdicts(lines, args.rule, *limits):
                print(line, flush=True)
        except UnicodeDecodeError as e:
            raise AstroError(f"{args.file}: not UTF-8 ({e.reason}); save the file as UTF-8") from e
    return 0


def plan(args: argparse.Namespace, command: str) -> int:
    """Compile a run for a TPU slice. Exit code 3 when a program does not fit."""
    from astro_jax import config
    from astro_jax.plan import planner, tables

    stages = PLANNED if args.stage == "all" else (args.stage,)
    c = config.load(args.config, args.overrides)
    if args.search:
        return _plan_search(args, c, stages)
    if args.remat:
        if args.stage not in ("all", "sft"):
            raise AstroError(f"plan: --remat is about SFT; leave out --stage {args.stage}")
        return _plan_remat(args, c)
    result = planner.plan_run(
        c, args.topology, stages, args.prompt, args.reached, args.compile_only, not args.no_compile, args.mean_length
    )
    if args.json:
        print(json.dumps(result))
    elif args.markdown:
        print(tables.format_markdown(result))
    else:
        tables.print_plan(result)
    if not result.get("fits", True):
        print(f"astro: {args.topology}: {planner.suggest_changes(result)}", file=sys.stderr)
    return 0 if result.get("fits", True) else 3


def _plan_search(args: argparse.Namespace, c: cfg.Config, stages: Sequence[str]) -> int:
    """Try every mesh of the slice. Exit code 3 when none fits."""
    from astro_jax.plan import mesh_search

    results = mesh_search.search_meshes(c, args.topology, stages, args.prompt, args.reached, args.mean_length)
    if args.json:
        print(json.dumps(results))
    else:
        mesh_search.print_meshes(results)
    if not results[0]["fits"]:
        print(f"astro: {args.topology}: no mesh fits; take a larger slice", file=sys.stderr)
    return 0 if results[0]["fits"] else 3


def _plan_remat(args: argparse.Namespace, c: cfg.Config) -> int:
    """Compare the policies of sft.remat_policy. Exit code 3 when none fits."""
    from astro_jax.plan import remat

    rows = remat.compare(c, args.topology, args.prompt)
    if args.json:
        print(json.dumps(rows))
    else:
        remat.print_policies(rows)
    return 0 if any(row["fits"] for row in rows) else 3


def _print_results(results: dict[str, Any]) -> None:
    """Print results.json as a table, one row a model."""
    from rich.console import Console
    from rich.table import Table

    n = next(iter(results["models"].values()))["pass@1"]["n"]
    table = Table(title=f"{n} held-out problems, 95% intervals, seed {results['seed']}")
    for column in ("model", "pass@1 %", "greedy %", "majority % at equal tokens", "tokens", "backtracks", "valid %",
                   "truncated %"):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, m in results["models"].items():
        vote = f"{percent.rate(m['maj'])} (k={m['maj']['k']})" if "maj" in m else ""
        table.add_row(
            name, percent.rate(m["pass@1"]), percent.rate(m["greedy"]), vote, f"{m['mean_tokens']:.1f}",
            f"{m['mean_backtracks']:.2f}", f"{100 * m['valid_rate']:.1f}", f"{100 * m['truncated_rate']:.1f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 130).print(table)
