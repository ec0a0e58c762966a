"""The verifier of each task, as one table. A new kind of problem is one new row of VERIFIERS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Response, Task, Verdict
from astro_jax.verify import countdown, numeric_answer
from astro_jax.verify.answer import Rule, extract
from astro_jax.verify.pool import Call


@dataclasses.dataclass(frozen=True)
class LocalVerifier:
    """A verifier that runs in this process, for responses that own code can judge in microseconds.

    Attributes:
      verify: judges (problem, text of the response, whether an end token ended the text).
    """

    verify: Callable[[Problem, str, bool], Verdict]


@dataclasses.dataclass(frozen=True)
class WorkerVerifier:
    """A verifier that runs in worker processes, for responses that a library parses.

    Attributes:
      call: makes the call of a worker's function (worker.FUNCTIONS) that judges a response by a rule.
      modules: the modules that a worker imports before its first call.
    """

    call: Callable[[Response, Rule], Call]
    modules: tuple[str, ...] = ()


def _math_call(response: Response, rule: Rule) -> Call:
    return Call("math", (response.problem.answer, response.text, rule))


def _gym_call(response: Response, rule: Rule) -> Call:
    meta = response.problem.meta
    return Call("gym", (meta["task"], meta["entry"], response.text, rule))


def _judged(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Read the answer of a response on which a judge alone can decide: its last box, else its last line."""
    last_line = response.strip().rpartition("\n")[2].strip()
    answer = (extract(response, "strict") or last_line or None) if stopped else None
    return Verdict(False, answer is not None, answer, count_backtracks(response))


VERIFIERS: Mapping[Task, LocalVerifier | WorkerVerifier] = {
    "countdown": LocalVerifier(countdown.verify),
    "number": LocalVerifier(numeric_answer.verify),
    "math": WorkerVerifier(_math_call),
    "gym": WorkerVerifier(_gym_call, ("reasoning_gym",)),
    "judged": LocalVerifier(_judged),
}


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge one response in this process. A response that needs a worker (Verifier.judge) counts as unparsed.

    Args:
      response: the text after the prompt, without the end token.
      stopped: whether an end token ended the text. A response that was cut off is not correct.
    """
    verifier = VERIFIERS[problem.task]
    if isinstance(verifier, LocalVerifier):
        return verifier.verify(problem, response, stopped)
    return Verdict(False, False, None, count_backtracks(response))
