"""A model as a judge: it reads a problem and a response, and says by a rubric whether the response is right.

For tasks that no rule can decide. The rubric is the prompt `evaluate` (`astro_jax.prompts`), of which a config may name
another file. Of N sampled judgements a share must approve: the judge is self-consistent where they agree. With the
prompt `classify` the same judge names the error of a wrong response (`evaluate.judged_errors`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from astro_jax import config as cfg
from astro_jax.llama import checkpoint, paths
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.mesh import Sharding
from astro_jax.policy import Policy, Prompt
from astro_jax.prompts import PromptTemplate
from astro_jax.sampler import Engine
from astro_jax.types import Response

Verdicts = tuple[str, str]  # last lines that approve and reject


@dataclasses.dataclass(frozen=True)
class Judgements:
    """The judgements of one response.

    Attributes:
      n: how many were asked for.
      approved, rejected: how many say so.
      texts: as they were sampled; None for one that was cut off.
    """

    n: int
    approved: int
    rejected: int
    texts: list[str | None]

    @property
    def unread(self) -> int:
        """Those without a verdict, and those that were not sampled because the prompt was too long."""
        return self.n - self.approved - self.rejected

    def passes(self, share: float) -> bool:
        """Whether at least this share of the judgements approves. One without a verdict does not approve."""
        return self.approved >= share * self.n - 1e-9  # 0.28 * 25 is above 7


def read_verdict(judgement: str | None, verdicts: Sequence[str]) -> str | None:
    """Read which of the verdicts a judgement gives. None if its last line is not exactly one of them.

    Quotes and bold type may stand around the verdict: the stop string ends a judgement before they close.
    """
    lines = (judgement or "").strip().splitlines()
    allowed = "|".join(map(re.escape, verdicts))
    match = re.fullmatch(rf"[\"'*_`> ]*({allowed})[\"'*_`.]*", lines[-1].strip()) if lines else None
    return match[1] if match else None


def count(texts: list[str | None], n: int, verdicts: Verdicts) -> Judgements:
    """Count the verdicts of n judgements, of which `texts` were sampled."""
    read = [read_verdict(text, verdicts) for text in texts]
    approved, rejected = map(read.count, verdicts)
    return Judgements(n, approved, rejected, texts)


class Judge:
    """A model that judges responses.

    A judgement depends on the problem, the response and the seed alone: the same response gets the same judgements in
    any order, and after a restart.

    Args:
      policy: the model.
      rubric: the prompt, with the variables `problem` and `solution`, and `answer` for the right answer.
      verdicts: the last lines that a judgement may have. Each ends it. For `judge` they are two, which approve and
        reject.
      n: judgements of each response.
      max_tokens: most tokens of a judgement.
    """

    def __init__(self, policy: Policy, rubric: PromptTemplate, verdicts: Sequence[str], n: int, max_tokens: int):
        self.policy, self.rubric, self.verdicts, self.n, self.max_tokens = policy, rubric, verdicts, n, max_tokens

    def judge(self, responses: Sequence[Response], progress: Callable[[int], None] | None = None) -> list[Judgements]:
        """Judge responses. One that was cut off is rejected without a question.

        Args:
          progress: called with the number of judgements that have ended since the last call.
        """
        approve, reject = self.verdicts
        texts = iter(self.ask([r for r in responses if r.stopped], progress))
        cut_off = Judgements(self.n, 0, self.n, [])
        return [count(next(texts), self.n, (approve, reject)) if r.stopped else cut_off for r in responses]

    def ask(
        self, responses: Sequence[Response], progress: Callable[[int], None] | None = None
    ) -> list[list[str | None]]:
        """Sample n judgements of each response, equal ones once.

        Returns:
          the texts; None for one that was cut off. A response whose prompt is too long for the context has none.
        """
        asked = {self._key(r): r for r in responses}
        prompts = [Prompt(self._text(r), self.n, ("judge", *key)) for key, r in asked.items()]
        limits = [self.max_tokens] * len(prompts)
        texts = self.policy.complete(prompts, limits, stop=self.verdicts, progress=progress)
        by_key = dict(zip(asked, texts, strict=True))
        return [by_key[self._key(r)] for r in responses]

    def _key(self, response: Response) -> tuple[str, str]:
        return response.problem.id, hashlib.sha256(response.text.encode()).hexdigest()[:16]

    def _text(self, response: Response) -> str:
        problem = response.problem
        values = {"problem": problem.prompt.strip(), "answer": problem.answer, "solution": response.text.strip()}
        return self.rubric.render(**values)


class RunJudge:
    """The judge of a run (`verify.judge`), as a `Verifier` calls it. The model is loaded for the first response.

    The model computes in `sampler.dtype`, also where the policy has int8 weights. Every process of a run must call the
    judge with the same responses, since all of them sample together.
    """

    def __init__(self, c: cfg.Config, rubric: PromptTemplate, sharding: Sharding):
        assert c.verify.judge is not None
        self.c, self.settings, self.rubric, self.sharding = c, c.verify.judge, rubric, sharding
        self._judge: Judge | None = None

    def __call__(self, responses: Sequence[Response]) -> list[bool]:
        """Say for each response whether enough judgements approve."""
        if self._judge is None:
            self._judge = self._load()
        return [j.passes(self.settings.pass_share) for j in self._judge.judge(responses)]

    def unload(self) -> None:
        """Free the memory of the model, until the next response."""
        self._judge = None

    def _load(self) -> Judge:
        folder = paths.resolve(self.settings.model, download=True)
        config, params = checkpoint.load(folder, self.sharding, jnp.dtype(self.c.sampler.dtype))
        tokenizer = tokenizers.load(str(folder))
        chat = cfg.Chat(template=tokenizer.hf.chat_template is not None)
        engine = Engine.from_config(self.c.sampler.unquantized(), config, self.sharding, self.c.seed)
        policy = Policy(engine, params, dataclasses.replace(tokenizer, chat=chat))
        s = self.settings
        return Judge(policy, self.rubric, self.c.verify.verdicts, s.num_samples, s.max_tokens)
