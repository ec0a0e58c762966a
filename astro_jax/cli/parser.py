"""The commands and their options. `docs/command-line.md` is generated from here."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import astro_jax
from astro_jax import distributed
from astro_jax.cli import budgets, commands, judge, model_suites, own_model
from astro_jax.stages import PLANNED, STAGES, stages_of

Parser = argparse.ArgumentParser
CONFIG_HELP = "a recipe, as in quickstart, or a YAML file"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: as in `astro NAME`. It may have two words.
      group: the heading of the help page.
      purpose: one line for the help page.
      add_arguments: adds its arguments to a parser.
      call: (args, command line) -> exit code.
      stages: the stages that it runs, () for all of a config; None for a command that runs no stage.
    """

    name: str
    group: str
    purpose: str
    add_arguments: Callable[[Parser], None]
    call: Callable[[argparse.Namespace, str], int]
    stages: tuple[str, ...] | None = None


class CommandParser(Parser):
    """The parser of a command. If the command takes a config, its help page ends with the names of the recipes."""

    def format_help(self) -> str:
        if any(action.dest == "config" for action in self._actions):
            from astro_jax import config  # takes a second to import

            self.epilog = f"recipes: {', '.join(config.recipes())}"
        return super().format_help()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. `key=value` may stand after options too, which argparse alone would refuse."""
    parser = build()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        args.overrides += [x for x in rest if not x.startswith("-")]
        rest = [x for x in rest if x.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}{_key_hint(rest[0], argv)}")
    return args


def _key_hint(option: str, argv: Sequence[str]) -> str:
    """Say how to write a key of the config that was given as an option, as in `--seed 7`; "" for no key."""
    from astro_jax import config  # takes a second to import

    name, _, value = option.lstrip("-").replace("-", "_").partition("=")
    if name not in config.flatten(config.Config()):
        return ""
    after = argv[argv.index(option) + 1 :]
    return f"; a key of the config is written {name}={value or next(iter(after), '...')}"


def build() -> Parser:
    """Build the parser of all commands."""
    lines = []
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines += ["", f"{group}:", *(f"  {c.name:<15}{c.purpose}" for c in COMMANDS if c.group == group)]
    lines += ["", "`astro COMMAND --help` lists the options of a command."]
    parser = Parser(
        prog="astro", description="\n".join(["ASTRO for JAX (arXiv 2507.00417)", *lines]), usage="astro COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"astro_jax {astro_jax.__version__}")
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", help=argparse.SUPPRESS, parser_class=CommandParser
    )
    groups: dict[str, Any] = {}  # the parsers below the first word of names with two words
    for command in COMMANDS:
        first, _, second = command.name.partition(" ")
        if not second:
            of_command(command, subparsers.add_parser)
            continue
        if first not in groups:
            below = subparsers.add_parser(first, usage=f"astro {first} COMMAND ...")
            groups[first] = below.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
        of_command(command, groups[first].add_parser)
    return parser


def of_command(command: Command, make: Callable[..., Parser] = CommandParser) -> Parser:
    """Make the parser of one command."""
    parser = make(command.name.rpartition(" ")[2], description=f"{command.purpose[0].upper()}{command.purpose[1:]}.")
    parser.prog = f"astro {command.name}"
    command.add_arguments(parser)
    parser.set_defaults(call=command.call, **({} if command.stages is None else {"stages": command.stages}))
    if command.name in own_model.OPTIONS:
        parser.set_defaults(own_stage=command.name)
    return parser


# ---- Arguments


def _config(parser: Parser, example: str) -> None:
    parser.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes of the config, as in {example}")


def _stage(parser: Parser) -> None:
    _config(parser, "seed=7 or sft.num_train_epochs=2")
    group = parser.add_argument_group("several processes", "A TPU slice needs none of these; elsewhere set all of:")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address at which the first process listens")
    group.add_argument("--processes", type=int, metavar="N",
                       help="number of processes; 1: this machine alone; a TPU slice must have N")  # fmt: skip
    group.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")
    group.add_argument("--timeout", type=float, default=distributed.TIMEOUT_SECONDS, metavar="S",
                       help="seconds to wait for a silent process (default %(default)g)")  # fmt: skip
    group.add_argument("--start-timeout", type=float, default=distributed.START_TIMEOUT_SECONDS, metavar="S",
                       help="seconds to wait for a process that is alive, but late (default %(default)g)")  # fmt: skip
    parser.add_argument("--max-hours", type=float, metavar="H",
                        help="end, with exit code 2, after H hours of all commands on this run")  # fmt: skip
    parser.add_argument("--profile", type=int, metavar="PORT", help="serve JAX's profiler at this port")


def _sft(parser: Parser) -> None:
    _stage(parser)
    own_model.add_arguments(parser, "sft")


def _grpo(parser: Parser) -> None:
    _stage(parser)
    own_model.add_arguments(parser, "grpo")


def _eval(parser: Parser) -> None:
    _stage(parser)
    model_suites.add_arguments(parser)


def _search(parser: Parser) -> None:
    _stage(parser)
    parser.add_argument("--shard", metavar="i/n", help="search only shard i of n, i from 0, as in 0/4")


def _traces(parser: Parser) -> None:
    _stage(parser)
    own_model.add_arguments(parser, "traces")
    parser.add_argument("--clone", choices=("template", "model"), help="writer of the traces: traces.clone=...")
    parser.add_argument("--out", metavar="DIR", help="also write the sets to DIR, as Parquet and JSONL of messages")
    parser.add_argument("--push", metavar="ORG/NAME", help="also upload the sets to the hub, as a private data set")


def _problems(parser: Parser) -> None:
    _config(parser, "problems.path=problems.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _sweep(parser: Parser) -> None:
    _config(parser, "out=runs/my-sweep or scale=0.5, for all runs")
    parser.add_argument("--vary", action="append", required=True, metavar="KEY=a,b,c|FILE",
                        help="a variant for each value of a key, or one by a file or recipe")  # fmt: skip
    parser.add_argument("--seeds", default="0", metavar="0,1,2", help="seeds of each variant (default 0)")
    parser.add_argument("--dry-run", action="store_true", help="check all configs, count the stages, and run nothing")


def _check(parser: Parser) -> None:
    _config(parser, "problems.path=problems.jsonl")
    parser.add_argument("--topology", metavar="NAME", help="check for a TPU slice, as in v5e:4x4, not this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _show(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run, as in runs/quickstart")
    parser.add_argument("--rollouts", metavar="STAGE", help="completions of a stage of RL, as in astro-rl")
    parser.add_argument("--step", type=int, help="with --rollouts: the step, from 1; default: the last one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _compare(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run; the first is the baseline")
    parser.add_argument("--pool", action="store_true",
                        help="take the runs as seeds: the figures of each model on suites, with intervals over seeds "
                        "and problems; RUN may be a folder of `astro eval MODEL --suite` too")  # fmt: skip
    parser.add_argument("--judge", metavar="JUDGE",
                        help="with --pool: take the error classes of `astro errors JUDGE ANSWERS`")  # fmt: skip
    parser.add_argument("--out", default="compare.html", metavar="PAGE", help="the page to write (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _status(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run, as in runs/quickstart or gs://bucket/run")
    parser.add_argument("--price", type=float, metavar="P", help="price of one chip for one hour: print the cost")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _import(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face folder, a .gguf file, or org/name on the hub")
    parser.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: dtype of the source")
    parser.add_argument("--dry-run", action="store_true", help="check everything but the values, and write nothing")


def _export(parser: Parser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a model folder, as in runs/quickstart/astro-rl/model")
    parser.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    parser.add_argument("--verify", choices=("torch",), help="also compare with transformers, before DST appears")


def _sample(parser: Parser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a model folder, a Hugging Face folder, or a shipped model")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="system prompt of the chat (default: that of the template)")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token: --temperature 0")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="divisor of the logits (default 1)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P",
                        help="only the likeliest tokens with a total probability of P (default: all)")  # fmt: skip
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P",
                        help="only tokens with P times the probability of the likeliest (default: all)")  # fmt: skip
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end with TEXT; may be repeated")
    parser.add_argument("--n", type=int, default=1, help="number of samples (default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="most tokens of a sample (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples (default 0)")


def _verify(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSONL (default: standard input)")
    parser.add_argument(
        "--rule", choices=("strict", "lenient", "math500"), default="strict", help="default: strict (rewards)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="deadline (default 5)")
    parser.add_argument("--memory", type=float, default=1.0, metavar="GIB", help="memory limit (default 1)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")


def _plan(parser: Parser) -> None:
    _config(parser, "mesh.tp=8 or sft.batch_size=32")
    parser.add_argument("--topology", required=True, metavar="NAME", help="v5e:4x4, or v5e:4x4:2 for two slices")
    parser.add_argument("--stage", choices=(*PLANNED, "all"), default="all", help="default: all")
    parser.add_argument("--prompt", type=int, default=512, metavar="P", help="tokens of a prompt (default 512)")
    parser.add_argument("--reached", type=float, default=0.4, metavar="SHARE",
                        help="assumed share of the roofline, for the recipe's time (default 0.4)")  # fmt: skip
    parser.add_argument("--mean-length", type=float, default=0.5, metavar="SHARE",
                        help="mean length of samples, as a share of the greatest length (default 0.5)")  # fmt: skip
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--search", action="store_true", help="try every fsdp x tp, and smaller batches if none fits")
    kinds.add_argument("--remat", action="store_true", help="compare the policies of sft.remat_policy")
    kinds.add_argument("--compile-only", action="store_true", help="print memory and compile times only")
    kinds.add_argument("--no-compile", action="store_true", help="print the time of the run only, in a few seconds")
    kinds.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench_search(parser: Parser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="changes of the recipe's search, as in search.num_simulations=8")  # fmt: skip
    parser.add_argument(
        "--config", default="llama-instruct", metavar="CONFIG", help=f"{CONFIG_HELP} (default %(default)s)"
    )
    parser.add_argument("--lines", type=int, default=12, metavar="N", help="lines of a solution (default %(default)s)")
    parser.add_argument("--distinct", type=int, default=8, metavar="N",
                        help="different lines that can follow a node (default %(default)s)")  # fmt: skip
    parser.add_argument("--solve", type=float, default=0.5, metavar="P",
                        help="chance of a right solution (default %(default)s)")  # fmt: skip
    parser.add_argument("--unfinished", type=float, default=0.0, metavar="P",
                        help="chance that a line never ends (default %(default)s)")  # fmt: skip
    parser.add_argument("--trees", type=int, default=200, metavar="N", help="problems (default %(default)s)")
    parser.add_argument("--paper-trees", type=int, default=4, metavar="N",
                        help="problems to search with the paper's budget too (default %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the policy and its problems (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench_trees(parser: Parser) -> None:
    parser.add_argument("--trees", type=int, default=20_700, metavar="N", help="trees (default %(default)s)")
    parser.add_argument("--nodes", type=int, default=1000, metavar="N",
                        help="nodes of a tree, on average (default %(default)s)")  # fmt: skip
    parser.add_argument("--lines", type=int, default=12, metavar="N", help="lines of a solution (default %(default)s)")
    parser.add_argument("--characters", type=int, default=60, metavar="N",
                        help="characters of a line (default %(default)s)")  # fmt: skip
    parser.add_argument("--paper", action="store_true",
                        help="trees of the paper's budget with kept rollouts, whatever --nodes says")  # fmt: skip
    parser.add_argument("--model", default="countdown-base", metavar="CKPT",
                        help="its tokenizer counts the tokens of the data card (default %(default)s)")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="keep the files in this new folder (default: they are removed)")
    parser.add_argument("--seed", type=int, default=0, help="of the trees and traces (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench_sampler(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="CKPT", help="as for `astro sample`")
    parser.add_argument("--groups", type=int, default=4, metavar="G", help="prompts (default 4)")
    parser.add_argument("--samples", type=int, default=16, metavar="M", help="samples of each prompt (default 16)")
    parser.add_argument("--prompt", type=int, default=128, metavar="P", help="tokens of a prompt (default 128)")
    parser.add_argument("--new", type=int, default=64, metavar="T", help="new tokens of a sample (default 64)")
    parser.add_argument("--ragged", action="store_true", help="geometric lengths of mean T/2, at most 4T")
    parser.add_argument("--max-num-seqs", type=int, metavar="N",
                        help="most sequences that decode at once (default: all samples, at most 512)")  # fmt: skip
    parser.add_argument("--kv-cache-gib", type=float, metavar="GIB",
                        help="memory of the KV cache; lowers --max-num-seqs to what fits")  # fmt: skip
    parser.add_argument("--block-size", type=int, default=32, metavar="C", help="columns of a cache block (default 32)")
    parser.add_argument("--quantization", choices=("int8",), help="round the weights")
    parser.add_argument("--kv-cache-dtype", choices=("int8",), help="round keys and values")
    parser.add_argument("--compare", choices=("torch", "static"),
                        help="also measure transformers' generate, or static batching")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench_sft(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="CKPT", help="as for `astro sample`")
    parser.add_argument("--rows", type=int, default=4, metavar="B", help="rows of a batch (default 4)")
    parser.add_argument("--length", type=int, default=256, metavar="S", help="tokens of a row (default 256)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="measured steps (default 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--compare", choices=("torch",), help="also measure transformers with fused AdamW")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bench_grpo(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="CKPT", help="as for `astro sample`")
    parser.add_argument("--prompts", type=int, default=8, metavar="G", help="prompts of a step (default 8)")
    parser.add_argument("--samples", type=int, default=8, metavar="M", help="completions of a prompt (default 8)")
    parser.add_argument("--prompt", type=int, default=32, metavar="P", help="tokens of a prompt (default 32)")
    parser.add_argument("--new", type=int, default=64, metavar="T", help="tokens of a completion (default 64)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="measured steps (default 3)")
    parser.add_argument("--micro-batch", type=int, default=8, metavar="R",
                        help="rows of one gradient computation (default 8)")  # fmt: skip
    parser.add_argument("--compare", choices=("trl",), help="also measure TRL's GRPOTrainer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# ---- The table


def _stage_commands() -> list[Command]:
    """The commands that run one or two stages, from the registry."""
    special = {
        "search": (_search, commands.run), "traces": (_traces, commands.traces), "sft": (_sft, commands.run),
        "grpo": (_grpo, commands.run), "eval": (_eval, commands.evaluate),
    }  # fmt: skip
    table = []
    for name in dict.fromkeys(stage.command for stage in STAGES.values()):
        purpose = "; ".join(STAGES[stage].purpose for stage in stages_of(name))
        table.append(Command(name, "One stage", purpose, *special.get(name, (_stage, commands.run)), stages_of(name)))
    return table


COMMANDS: tuple[Command, ...] = (
    Command("run", "Run a recipe", "run all stages in order, and skip finished ones", _stage, commands.run, ()),
    Command("sweep", "Run a recipe", "compare variants of a config with it, over seeds", _sweep, commands.sweep),
    Command("check", "Run a recipe", "list what would stop a run, before it starts", _check, commands.check),
    Command("show", "Run a recipe", "show the stages of a run, or completions of RL", _show, commands.show),
    Command("compare", "Run a recipe", "show several runs side by side, in one page", _compare, commands.compare),
    Command("status", "Run a recipe", "show how far a run is, its speed, goodput and chip-hours", _status,
            commands.status),
    *_stage_commands(),
    Command("budgets", "Models", "compare one answer with votes, best-of-N and tree search at equal tokens",
            budgets.add_arguments, budgets.run),
    Command("import", "Models", "make a model folder from a Hugging Face model or a GGUF file", _import,
            commands.import_model),
    Command("export", "Models", "write a checkpoint as a Hugging Face folder", _export, commands.export),
    Command("sample", "Models", "continue a text with a model", _sample, commands.sample),
    Command("problems", "Problems and answers", "show what a run would draw, and what is left out", _problems,
            commands.problems),
    Command("verify", "Problems and answers", "judge answers: JSONL of gold and response in, of verdicts out", _verify,
            commands.verify),
    Command("judge", "Problems and answers", "measure how often a model is fooled as a judge", judge.add_arguments,
            judge.run),
    Command("errors", "Problems and answers", "let a model name the errors that rules leave open",
            judge.add_errors_arguments, judge.run_errors),
    Command("plan", "Machines", "compile a run for a TPU slice, without a TPU: memory and time", _plan, commands.plan),
    Command("bench sampler", "Machines", "measure the sampler, as a share of the machine's limits", _bench_sampler,
            commands.bench_sampler),
    Command("bench sft", "Machines", "measure a step of SFT, as a share of the machine's limits", _bench_sft,
            commands.bench_sft),
    Command("bench grpo", "Machines", "measure a step of GRPO, as a share of the machine's limits", _bench_grpo,
            commands.bench_grpo),
    Command("bench search", "Machines", "measure a search on a synthetic policy: usable trees, tokens", _bench_search,
            commands.bench_search),
    Command("bench trees", "Machines", "measure what follows a search: files, traces, data card, report", _bench_trees,
            commands.bench_trees),
)  # fmt: skip
