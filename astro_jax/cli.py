"""`astro COMMAND`: one thin function a command."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import traceback
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from astro_jax import distributed
from astro_jax.errors import AstroError

if TYPE_CHECKING:
    from astro_jax import config as cfg

# Commands that run stages of a config: what they run (nothing: all), and what they are for.
STAGE_COMMANDS = {
    "run": ((), "all stages in order; what is finished is skipped"),
    "base": (("base",), "import the base model, or train it from scratch"),
    "search": (("search",), "grow a search tree for each problem"),
    "traces": (("traces",), "turn trees into chains of thought"),
    "difficulty": (("difficulty",), "measure how often the base model solves each prompt for RL"),
    "sft": (("direct-sft", "astro-sft"), "fine-tune on the traces, and on the Direct control"),
    "grpo": (("direct-rl", "astro-rl"), "reinforcement learning from both fine-tuned models"),
    "eval": (("eval",), "evaluate all models on held-out problems"),
    "report": (("report",), "write results.json and report.html"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit code 2 for bad input, with one line; 1 where another process is lost; 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(argv)
    _quiet()
    code, message = _called(args, shlex.join(["astro", *argv]))
    if code and distributed.process_count() > 1:
        distributed.exit_all(code, message)
    return code


def _called(args: argparse.Namespace, command: str) -> tuple[int, str]:
    """The exit code, and what went wrong."""
    try:
        if hasattr(args, "stages"):
            distributed.initialize(args.coordinator, args.processes, args.process, args.timeout)
            if args.profile:
                import jax

                jax.profiler.start_server(args.profile)
        return args.call(args, command), ""
    except AstroError as e:
        return _fail(str(e), code=1 if isinstance(e, distributed.ProcessLostError) else 2)
    except KeyboardInterrupt:
        print(f"astro: stopped; {_again(args)}", file=sys.stderr)
        return 130, "stopped"
    except Exception as e:
        # A full disk shows as an OSError here and as others inside Orbax.
        if "No space left on device" in str(e):
            return _fail(f"no space left on device: free some, and {_again(args)}")
        if isinstance(e, PermissionError):
            return _fail(f"{e.filename}: no permission; choose another folder with out=DIR")
        if distributed.process_count() == 1:
            raise
        if lost := distributed.silent_processes():
            return _fail(f"{lost} has gone; {_again(args)}", code=1)
        traceback.print_exc()
        return 1, f"{type(e).__name__}: {e}"


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; key=value may stand after options too, where argparse does not look for it."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        args.overrides += [x for x in rest if not x.startswith("-")]
        rest = [x for x in rest if x.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _again(args: argparse.Namespace) -> str:
    """What the same command does after an interruption: stages keep what they have finished."""
    return "the same command goes on from here" if hasattr(args, "stages") else "the same command starts anew"


def _fail(message: str, code: int = 2) -> tuple[int, str]:
    message = " ".join(message.split())
    print(f"astro: {message}", file=sys.stderr)
    return code, message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="astro", description="ASTRO for JAX (arXiv 2507.00417)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (stages, help_text) in STAGE_COMMANDS.items():
        p = commands.add_parser(name, help=help_text)
        p.add_argument("config", metavar="CONFIG", help="a YAML file of configs/")
        p.add_argument("overrides", nargs="*", metavar="key=value", help="as in seed=7 or sft.epochs=2")
        group = p.add_argument_group("several processes", "found by themselves on a TPU slice; elsewhere, all of:")
        group.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process listens")
        group.add_argument("--processes", type=int, metavar="N", help="how many there are; 1: this machine alone")
        group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
        group.add_argument("--timeout", type=float, default=distributed.TIMEOUT_SECONDS, metavar="S",
                           help="seconds to wait for one that says nothing (default %(default)g)")  # fmt: skip
        p.add_argument("--profile", type=int, metavar="PORT", help="open JAX's profiler there: see docs/tpu.md")
        if name == "search":
            p.add_argument("--shard", metavar="i/n", help="only the i-th of n parts, i from 0: see the README")
        p.set_defaults(call=_run, stages=stages)
        if name == "traces":
            p.add_argument("--clone", choices=("template", "model"), help="who writes them: traces.clone=...")
            p.add_argument("--out", metavar="DIR", help="also write them there as Parquet and JSONL of messages")
            p.add_argument("--push", metavar="ORG/NAME", help="also upload these to the hub as a private data set")
            p.set_defaults(call=_traces)
    p = commands.add_parser("problems", help="what a run would draw: its source, what is skipped and dropped, samples")
    p.add_argument("config", metavar="CONFIG", help="a YAML file of configs/")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as in problems.path=problems.jsonl")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(call=_problems)
    p = commands.add_parser("import", help="make a model folder of a Hugging Face model or a GGUF file")
    p.add_argument("source", metavar="SRC", help="a Hugging Face folder, a .gguf file, or org/name on the hub")
    p.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the source")
    p.add_argument("--dry-run", action="store_true", help="check all but the values, and write nothing")
    p.set_defaults(call=_import)
    p = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder")
    p.add_argument("checkpoint", metavar="CKPT", help="a model folder of a run, as in runs/quickstart/astro-rl/model")
    p.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    p.add_argument("--verify", choices=("torch",), help="compare with transformers too, before the folder appears")
    p.set_defaults(call=_export)
    p = commands.add_parser("sample", help="continue a text: the quick look at a checkpoint")
    p.add_argument(
        "checkpoint", metavar="CKPT", help="a model folder of a run, a Hugging Face folder, or a shipped model"
    )
    p.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue, as it stands")
    p.add_argument("--chat", action="store_true", help="put it to the model through its chat template")
    p.add_argument("--system", metavar="TEXT", help="the system prompt of a chat (default: the template's own)")
    p.add_argument("--greedy", action="store_true", help="the likeliest token each time: --temperature 0")
    p.add_argument("--temperature", type=float, default=1.0, metavar="T", help="divides the logits (default 1)")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default 0: all)")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only the likeliest with this share in all")
    p.add_argument("--min-p", type=float, default=0.0, metavar="P", help="only tokens with this share of the likeliest")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end with this text; may be repeated")
    p.add_argument("--n", type=int, default=1, help="samples (default 1)")
    p.add_argument("--max-new-tokens", type=int, default=128, help="of each sample (default 128)")
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples (default 0)")
    p.set_defaults(call=_sample)
    p = commands.add_parser("verify", help="judge answers: JSONL of gold and response in, of verdicts out")
    p.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSONL; default: the standard input")
    p.add_argument("--rule", choices=("strict", "lenient"), default="strict", help="default: strict, as for rewards")
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="the deadline of one answer (default 5)")
    p.add_argument("--memory", type=float, default=1.0, metavar="GIB", help="that one answer may take (default 1)")
    p.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")
    p.set_defaults(call=_verify)
    p = commands.add_parser(
        "plan", help="compile a run for a TPU slice that is not there: does it fit, how fast at best"
    )
    p.add_argument("config", metavar="CONFIG", help="a YAML file of configs/")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="as in mesh.tp=8 or sft.batch=32")
    p.add_argument("--topology", required=True, metavar="NAME", help="as in v5e:4x4, v6e:2x4 or v5p:4x4x8")
    p.add_argument("--stage", choices=("search", "sft", "grpo", "all"), default="all", help="default: all")
    p.add_argument("--prompt", type=int, default=512, metavar="P", help="tokens of a problem's prompt (default 512)")
    p.add_argument(
        "--reached",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="of the roofline, for the time of the whole recipe (default 0.4: an assumption)",
    )
    p.add_argument("--search", action="store_true", help="try every fsdp x tp, and smaller batches where none fits")
    p.add_argument("--compile-only", action="store_true", help="only memory and the time to compile: for a quick check")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print tables for a page")
    p.set_defaults(call=_plan)
    p = commands.add_parser("bench", help="measure this machine, as a share of its limits")
    p.add_argument("what", choices=("sampler",), help="what to measure")
    p.add_argument("--model", required=True, metavar="CKPT", help="as for `astro sample`")
    p.add_argument("--groups", type=int, default=4, metavar="G", help="prompts (default 4)")
    p.add_argument("--samples", type=int, default=16, metavar="M", help="of each prompt (default 16)")
    p.add_argument("--prompt", type=int, default=128, metavar="P", help="tokens of a prompt (default 128)")
    p.add_argument("--new", type=int, default=64, metavar="T", help="new tokens of a sample (default 64)")
    p.add_argument("--ragged", action="store_true", help="lengths from a geometric distribution, mean T/2, at most 4T")
    p.add_argument(
        "--max-num-seqs", type=int, metavar="N", help="rows that decode at once (default: all samples, at most 512)"
    )
    p.add_argument(
        "--kv-cache-gib", type=float, metavar="GIB", help="for the caches: as many rows as fit it, and --max-num-seqs"
    )
    p.add_argument("--block-size", type=int, default=32, metavar="C", help="columns attended to at once (default 32)")
    p.add_argument(
        "--compare", choices=("torch", "static"), help="with transformers' generate, or with rows that are not refilled"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(call=_bench)
    return parser


def _run(args: argparse.Namespace, command: str) -> int:
    from astro_jax import config, pipeline, storage

    c = config.load(args.config, args.overrides)
    how = {"part": _part(args.shard)} if getattr(args, "shard", None) is not None else {}
    run = pipeline.execute(c, command, args.stages, **how)
    if "report" in (args.stages or c.stages) and distributed.is_main_process():
        _print_results(storage.read_json(run.folder / "results.json"))
        page = run.folder / "report.html"
        print(f"report: {page}")
        if sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(f"file://{page.absolute()}")  # only where a person sits in front of a screen
    return 0


def _problems(args: argparse.Namespace, command: str) -> int:
    import json

    from astro_jax import config
    from astro_jax.problems import source

    found = source.describe(config.load(args.config, args.overrides))
    print(json.dumps(found, ensure_ascii=False) if args.json else source.shown(found))
    return 0


def _traces(args: argparse.Namespace, command: str) -> int:
    from etils import epath

    from astro_jax import config, pipeline, storage
    from astro_jax.traces import export

    if args.out:
        storage.require_absent(epath.Path(args.out))
    export.check(out=bool(args.out), push=bool(args.push))
    clone = [f"traces.clone={args.clone}"] if args.clone else []
    run = pipeline.execute(config.load(args.config, [*args.overrides, *clone]), command, args.stages)
    if not distributed.is_main_process():
        return 0
    if args.out:
        export.write(run.folder / "traces", epath.Path(args.out))
        print(f"written: {args.out}")
    if args.push:
        print(f"uploaded: {export.push(run.folder / 'traces', args.push)}")
    return 0


def _part(shard: str) -> tuple[int, int]:
    """i/n as two numbers."""
    i, _, n = shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise AstroError(f"--shard {shard}: write i/n with i from 0 to n - 1, as in 0/4")
    return int(i), int(n)


def _import(args: argparse.Namespace, command: str) -> int:
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


def _export(args: argparse.Namespace, command: str) -> int:
    from etils import epath

    from astro_jax.llama import checkpoint, hf, reference, tokenizer
    from astro_jax.report import card

    def check(folder: epath.Path) -> None:
        print(f"transformers agrees: logits differ by {reference.compare(folder, config, params):.1g} at most")

    if args.verify:
        reference.require_torch("--verify torch")
    config, params = checkpoint.load(args.checkpoint, dtype=None)
    hf.write(
        epath.Path(args.destination), config, params, tokenizer.load(args.checkpoint),
        card=card.text(args.checkpoint, config), check=check if args.verify else None,
    )  # fmt: skip
    print(f"written: {args.destination}")
    return 0


def _sample(args: argparse.Namespace, command: str) -> int:
    from astro_jax import config
    from astro_jax.policy import Policy
    from astro_jax.sampler import SamplingParams

    if args.n < 1 or args.max_new_tokens < 1:
        raise AstroError("sample: --n and --max-new-tokens are at least 1")
    if args.system is not None and not args.chat:
        raise AstroError("sample: --system is for a chat; add --chat")
    chat = config.Chat(template=args.chat, system=args.system)
    policy = Policy.load(args.checkpoint, args.seed, max_num_seqs=min(args.n, 64), chat=chat)
    request = policy.request(args.prompt, args.n, "sample")
    (samples,) = policy.generate(
        [request],
        SamplingParams(
            max_tokens=args.max_new_tokens, temperature=0.0 if args.greedy else args.temperature, top_k=args.top_k,
            top_p=args.top_p, min_p=args.min_p, stop=tuple(args.stop),
        ),
    )  # fmt: skip
    for i, sample in enumerate(samples):
        if args.n > 1:
            print(f"--- {i + 1}")
        print(policy.tokenizer.decode(sample.token_ids.tolist()))
    return 0


def _bench(args: argparse.Namespace, command: str) -> int:
    import json

    from astro_jax import bench
    from astro_jax.llama import reference
    from astro_jax.policy import Policy

    if args.compare == "torch":
        reference.require_torch("--compare torch")
    work = bench.Workload(args.groups, args.samples, args.prompt, args.new, args.ragged)
    max_num_seqs = args.max_num_seqs if args.max_num_seqs is not None else min(args.groups * args.samples, 512)
    policy = Policy.load(
        args.model, max_num_seqs=max_num_seqs, kv_cache_gib=args.kv_cache_gib, block_size=args.block_size
    )
    found = bench.sampler(policy, work, args.compare)
    print(json.dumps(found) if args.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


def _verify(args: argparse.Namespace, command: str) -> int:
    import contextlib

    from astro_jax.verify import stream

    if args.seconds <= 0 or args.memory <= 0 or args.workers < 0:
        raise AstroError("verify: --seconds and --memory are above 0, --workers at least 0")
    with contextlib.ExitStack() as stack:
        lines = sys.stdin if args.file == "-" else stack.enter_context(stream.opened(args.file))
        for line in stream.verdicts(lines, args.rule, args.seconds, args.memory, args.workers):
            print(line, flush=True)
    return 0


def _plan(args: argparse.Namespace, command: str) -> int:
    """Exit code 3 where a program does not fit."""
    import json

    from astro_jax import config
    from astro_jax.plan import planner, tables

    stages = planner.PLANNED_STAGES if args.stage == "all" else (args.stage,)
    c = config.load(args.config, args.overrides)
    if args.search:
        if args.compile_only or args.markdown:
            raise AstroError("plan: --search goes with neither --compile-only nor --markdown")
        return _plan_search(args, c, stages)
    if args.compile_only and args.markdown:
        raise AstroError("plan: --markdown prints the times that --compile-only leaves out")
    found = planner.plan_run(c, args.topology, stages, args.prompt, args.reached, args.compile_only)
    if args.json:
        print(json.dumps(found))
    elif args.markdown:
        print(tables.format_markdown(found))
    else:
        tables.print_plan(found)
    if not found["fits"]:
        print(f"astro: {args.topology}: {planner.suggest_changes(found)}", file=sys.stderr)
    return 0 if found["fits"] else 3


def _plan_search(args: argparse.Namespace, c: cfg.Config, stages: Sequence[str]) -> int:
    import json

    from astro_jax.plan import mesh_search

    found = mesh_search.search_meshes(c, args.topology, stages, args.prompt, args.reached)
    if args.json:
        print(json.dumps(found))
    else:
        mesh_search.print_meshes(found)
    if not found[0]["fits"]:
        print(f"astro: {args.topology}: no mesh fits; take a larger slice", file=sys.stderr)
    return 0 if found[0]["fits"] else 3


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    n = next(iter(results["models"].values()))["pass@1"]["n"]
    table = Table(title=f"{n} held-out problems, 95% intervals, seed {results['seed']}")
    for column in ("model", "pass@1 %", "greedy %", "majority % at equal tokens", "tokens", "backtracks", "valid %",
                   "cut off %"):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, m in results["models"].items():
        vote = f"{_percent(m['maj'])} (k={m['maj']['k']})" if "maj" in m else ""
        table.add_row(
            name, _percent(m["pass@1"]), _percent(m["greedy"]), vote, f"{m['mean_tokens']:.1f}",
            f"{m['mean_backtracks']:.2f}", f"{100 * m['valid_rate']:.1f}", f"{100 * m['truncated_rate']:.1f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _percent(rate: dict[str, float]) -> str:
    return f"{100 * rate['mean']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _quiet() -> None:
    """Libraries' notices that are not about the user's input."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
