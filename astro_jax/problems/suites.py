"""Evaluation suites by name: `math500`, `math-test:level=5`, `countdown:count=4`, `gym:chain_sum`, or a file.

A suite is the same for all models: what it holds depends on its name alone, not on the seed of a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from etils import epath

from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.problems import gym, hub, record_files, suite_records
from astro_jax.types import Problem

Arguments = dict[str, list[str]]  # key=value after the name; a key may come several times


@dataclasses.dataclass(frozen=True)
class Published:
    """A published set on the hub.

    Attributes:
      dataset: its name.
      subsets: the subsets that are read, one after the other.
      split: of the data set.
      size: the number of its problems; 0 where it is not known.
    """

    dataset: str
    subsets: tuple[str | None, ...] = (None,)
    split: str = "test"
    size: int = 0


# The sets that inspect-ai and lm-evaluation-harness read too. For AMC 2023 neither has a task.
PUBLISHED: Mapping[str, Published] = {
    "math500": Published("HuggingFaceH4/MATH-500", size=500),
    "amc2023": Published("math-ai/amc23", size=40),
    "aime2024": Published("Maxwell-Jia/AIME_2024", split="train", size=30),
    "aime2025": Published("math-ai/aime25", size=30),
    "aime2026": Published("math-ai/aime26", size=30),
    "gsm8k": Published("openai/gsm8k", ("main",), size=1319),
    "math-test": Published("EleutherAI/hendrycks_math", hub.SUBJECTS, size=5000),
}
GENERATED = ("countdown", "gym")
_COUNTDOWN_SIZE, _GYM_SIZE = 200, 100
_MAX_DRAWS = 1000  # games drawn for each problem asked for, before the rules count as too narrow


@dataclasses.dataclass(frozen=True)
class Suite:
    """The problems of an evaluation suite.

    Attributes:
      name: for folders and tables, as in "math-test_level=5".
      problems: in the order of the suite, each with its own id.
      origin: where the problems come from.
      skipped: records without a problem or an answer, by reason.
    """

    name: str
    problems: list[Problem]
    origin: dict[str, Any]
    skipped: Mapping[str, int]

    @property
    def digest(self) -> str:
        """A hash of all problems and answers. 16 hexadecimal digits."""
        content = repr([(p.id, p.prompt, p.answer, p.task, p.meta) for p in self.problems])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def is_mathematics(self) -> bool:
        """Whether the problems are texts of mathematics, and not of a game with rules and prompts of its own."""
        return all(p.task == "math" for p in self.problems)


def most_problems(spec: str) -> int | None:
    """The most problems that a suite has, without reading it; None for a file and for another data set of the hub."""
    name, arguments = _parse(spec)
    if name in GENERATED:
        return int(arguments.get("size", [str(_COUNTDOWN_SIZE if name == "countdown" else _GYM_SIZE)])[0])
    return PUBLISHED[name].size if name in PUBLISHED else None


def load(spec: str, limit: int | None = None) -> Suite:
    """Read a suite.

    Args:
      spec: a name of PUBLISHED, `countdown`, `gym:TASK`, a file (.jsonl, .json, .parquet), or `org/name` on the hub.
        After ":" come key=value pairs with commas: values that a field must have (`level=5,level=4,subject=Algebra`),
        names of fields (`problem=`, `answer=`, `solution=`), `split=` and `subset=` of a hub id, rules of Countdown
        (`count=4,max_number=50,size=200`), parameters of a reasoning-gym task.
      limit: only the first problems, as inspect-ai and lm-evaluation-harness do. Of a set of several subsets they are
        taken from all subsets in turn.

    Raises:
      AstroError: for an unknown name, a source that cannot be read, fields that are not known, and an empty suite.
    """
    name, arguments = _parse(spec)
    if epath.Path(name).is_file():
        suite = _read_file(name, arguments)
    elif name == "countdown":
        suite = _make_countdown(arguments)
    elif name == "gym":
        suite = _make_gym(arguments)
    elif name in PUBLISHED or "/" in name:
        suite = _read_hub(name, arguments, in_turn=limit is not None)
    else:
        known = [*PUBLISHED, *GENERATED]
        similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise AstroError(f"suite {name}: no such file or suite; there are {', '.join(similar)}, or org/name on the hub")
    if not suite.problems:
        reasons = ", ".join(f"{n} {reason}" for reason, n in suite.skipped.items()) or "the source is empty"
        raise AstroError(f"suite {spec}: no problem is left ({reasons})")
    return dataclasses.replace(suite, problems=suite.problems[:limit])


def _parse(spec: str) -> tuple[str, Arguments]:
    """Split "math-test:level=5,level=4" into the name and the arguments."""
    if epath.Path(spec).is_file():
        return spec, {}
    name, _, text = spec.partition(":")
    arguments: Arguments = {}
    for i, part in enumerate(text.split(",") if text else ()):
        key, equals, value = part.partition("=")
        if not equals and name == "gym" and not i:
            key, equals, value = "task", "=", part
        if not equals:
            raise AstroError(f"suite {spec}: write key=value after the colon, as in math-test:level=5,subject=Algebra")
        arguments.setdefault(key.strip(), []).append(value.strip())
    return name, arguments


def _title(name: str, arguments: Arguments) -> str:
    """A name for a folder: "math-test_level=5"."""
    parts = [name, *(f"{key}={value}" for key, values in arguments.items() for value in values)]
    return "_".join(parts).replace("/", "--").replace(" ", "-")


# ---- Published sets and files


def _read_file(name: str, arguments: Arguments) -> Suite:
    path = epath.Path(name)
    if path.suffix not in record_files.SUFFIXES:
        raise AstroError(f"suite {name}: must end with {', '.join(record_files.SUFFIXES)}")
    records = suite_records.read(record_files.read(path), _fields(arguments))
    return _select(_title(path.stem, arguments), {"path": name}, records, arguments)


def _read_hub(name: str, arguments: Arguments, in_turn: bool) -> Suite:
    published = PUBLISHED.get(name, Published(name))
    split = arguments.pop("split", [published.split])[-1]
    subsets = tuple(arguments.pop("subset", ())) or published.subsets
    records = suite_records.read(_hub_records(published.dataset, subsets, split, in_turn), _fields(arguments))
    origin = {"dataset": published.dataset, "split": split, "subsets": [s for s in subsets if s]}
    return _select(_title(name, arguments), origin, records, arguments)


def _hub_records(
    dataset: str, subsets: tuple[str | None, ...], split: str, in_turn: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    tables = [hub.load_subset(dataset, subset, split) for subset in subsets]
    places = [
        ((f"{dataset}{f' {subset}' if subset else ''}, record {i}", record) for i, record in enumerate(table))
        for subset, table in zip(subsets, tables, strict=True)
    ]
    if not in_turn:
        return itertools.chain(*places)
    return (x for row in itertools.zip_longest(*places) for x in row if x is not None)


def _fields(arguments: Arguments) -> dict[str, str]:
    """Take the names of fields out of the arguments."""
    return {field: arguments.pop(field)[-1] for field in suite_records.FIELDS if field in arguments}


def _select(title: str, origin: dict[str, Any], records: suite_records.Records, arguments: Arguments) -> Suite:
    """Keep the problems whose level and subject have the values that are asked for."""
    problems = records.problems
    for key, values in arguments.items():
        present, wanted = sorted({p.meta[key] for p in problems if key in p.meta}), set(map(_loose, values))
        if key not in ("level", "subject") or not wanted <= set(map(_loose, present)):
            has = f"it has {', '.join(present)}" if present else "choose by a level or a subject that records have"
            raise AstroError(f"suite {title}: no problem with {key}={','.join(values)}; {has}")
        problems = [p for p in problems if _loose(p.meta.get(key, "")) in wanted]
    chosen = {"chosen": arguments} if arguments else {}
    return Suite(title, problems, origin | chosen, records.skipped)


def _loose(text: str) -> str:
    """A value without capitals and signs: "Counting & Probability" and "counting_probability" are equal."""
    return "".join(c for c in text.lower().replace("&", "and") if c.isalnum()).replace("and", "")


# ---- Suites that are generated


def _make_countdown(arguments: Arguments) -> Suite:
    """Draw solvable games of any size from the side of the split that training never sees.

    A game is played backwards from nothing: numbers are drawn, and random moves combine them to the target. So the size
    is not limited by a search for solutions.
    """
    rules = {"count": 4, "max_number": 25, "max_value": 75, "ops": "+-*", "held_out": 0.2, "last_two": 0}
    values = _typed("countdown", arguments, rules | {"size": _COUNTDOWN_SIZE, "seed": 0})
    size, seed = values.pop("size"), values.pop("seed")
    game, rng = countdown.Game(**values), random.Random(f"suite/{seed}")
    problems: dict[str, Problem] = {}
    for _ in range(_MAX_DRAWS * size):
        if len(problems) == size:
            break
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        target = _play(numbers, game, rng) if countdown.is_held_out(numbers, game) else None
        if target is not None and target not in numbers:
            problem = countdown.make_problem(numbers, target, last_two=game.last_two)
            problems.setdefault(problem.id, problem)
    if len(problems) < size:
        raise AstroError(f"suite countdown: the rules {values} give {len(problems)} games in place of {size}")
    origin = {"countdown": values | {"size": size, "seed": seed}}
    return Suite(_title("countdown", arguments), list(problems.values()), origin, {})


def _play(numbers: countdown.Numbers, game: countdown.Game, rng: random.Random) -> int | None:
    """Make random moves until one number is left; None if no move is left before."""
    while len(numbers) > 1:
        moves = countdown.moves(numbers if game.last_two else tuple(sorted(numbers)), game)
        if not moves:
            return None
        numbers = countdown.after(numbers, rng.choice(moves), game.last_two)
    return numbers[0]


def _make_gym(arguments: Arguments) -> Suite:
    if "task" not in arguments:
        raise AstroError("suite gym: name a task, as in gym:chain_sum or gym:chain_sum,size=50")
    parameters = {key: yaml.safe_load(values[-1]) for key, values in arguments.items()}
    task, size = parameters.pop("task"), parameters.pop("size", _GYM_SIZE)
    # Another seed than any run's: problems of a small seed may be training problems.
    seed = int.from_bytes(hashlib.blake2b(f"suite/{parameters.pop('seed', 0)}".encode(), digest_size=3).digest())
    problems = gym.read(task, size, seed, parameters)
    origin = {"gym": {"task": task, "size": size, "seed": seed, **parameters}}
    return Suite(_title("gym", arguments), problems, origin, {"the same text again": size - len(problems)})


def _typed(name: str, arguments: Arguments, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Put arguments over defaults, each with the type of its default."""
    values = dict(defaults)
    for key, texts in arguments.items():
        if key not in defaults:
            raise AstroError(f"suite {name}: no key {key}; there are {', '.join(defaults)}")
        try:
            values[key] = type(defaults[key])(texts[-1])
        except ValueError as e:
            raise AstroError(f"suite {name}: {key}={texts[-1]} must be a number") from e
    return values
