"""A floor on backtracks while sampling: scripted answers by hand, the verdicts, limits of tokens, and a real engine."""

import contextlib
import itertools

import pytest
import scripted
from etils import epath
from helpers import chat_tokenizer, one_device, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.evaluate import forced_backtracks, pooled, responses, suites
from astro_jax.policy import Policy
from astro_jax.problems.suites import Suite
from astro_jax.sampler import Engine, Request, SamplingParams
from astro_jax.verify import Verifier

pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

TOKENIZER, WORDS = scripted.TOKENIZER, forced_backtracks.WORDS
PROBLEM = scripted.PROBLEMS[0]
RIGHT, MISS = (scripted.answer(PROBLEM, kind)[0] for kind in ("right", "wrong"))
AGAIN = countdown.restate(PROBLEM.meta["numbers"], PROBLEM.meta["target"])
# What the model writes before and after each forced backtrack, by sample. "|": cut off, without an end token.
SCRIPT = (
    (RIGHT, AGAIN + MISS),
    (MISS, AGAIN + RIGHT),
    (MISS + WORDS + AGAIN + RIGHT,),
    (MISS + "|",),
    (" 7", AGAIN + MISS + "|"),
)
FORCED = (1, 1, 0, 0, 1)  # forced backtracks with a floor of 1
MAX_TOKENS = 64


class Script:
    """An engine that writes SCRIPT.

    Attributes:
      requests: all requests so far.
    """

    config = tiny_config(max_positions=128)

    def __init__(self, script=SCRIPT, tokenizer=TOKENIZER):
        self.requests, self.script, self.tokenizer = [], script, tokenizer

    def new_prefix_cache(self):
        return "cache"

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        self.requests += requests
        if progress is not None:
            progress(sum(r.n for r in requests))
        return [[self.completion(r, j) for j in range(r.n)] for r in requests]

    def completion(self, request, j):
        continued = len(request.request_id) > 3
        sample, round_ = request.request_id[3:] if continued else (j, 0)
        text = self.script[sample][round_] if round_ < len(self.script[sample]) else AGAIN + MISS
        return scripted.completion(text.rstrip("|"), not text.endswith("|"), self.tokenizer)


def sample(min_backtracks, engine=None):
    engine = engine or Script()
    request = Request(tuple(TOKENIZER.prompt(PROBLEM.prompt)), len(SCRIPT), ("eval", "game", PROBLEM.id))
    policy, sampling = scripted.policy(engine), SamplingParams(max_tokens=MAX_TOKENS)
    (answers,) = forced_backtracks.sample(policy, [request], sampling, min_backtracks)
    return answers, engine.requests


def test_an_answer_that_ends_too_early_goes_back_and_samples_on():
    answers, requests = sample(1)
    texts = [TOKENIZER.decode(a.token_ids) for a in answers]
    assert texts == [
        RIGHT + WORDS + AGAIN + MISS,
        MISS + WORDS + AGAIN + RIGHT,
        SCRIPT[2][0],
        MISS,
        " 7" + WORDS + AGAIN + MISS,
    ]
    for a, text, forced in zip(answers, texts, FORCED, strict=True):
        assert [text[at:].startswith(WORDS) for at in a.forced_at] == [True] * forced
        assert TOKENIZER.decode([a.token_ids[i] for i in a.forced]) == WORDS * forced
        assert a.token_ids.count(TOKENIZER.eos_token_id) == a.stopped
    # A continuation reads the text so far, and has the tokens that are left of the limit.
    first = requests[1]
    assert TOKENIZER.decode(first.prompt_token_ids) == PROBLEM.prompt + RIGHT + WORDS
    assert first.request_id == ("eval", "game", PROBLEM.id, 0, 1) and first.n == 1
    assert first.max_tokens == (MAX_TOKENS - len(TOKENIZER.encode(RIGHT)),)


def test_each_answer_is_forced_up_to_the_floor_but_no_further():
    answers, requests = sample(3)
    # Of five answers one is cut off at once, and one after it was forced; one has a backtrack of its own.
    assert [len(a.forced_at) for a in answers] == [3, 3, 2, 0, 1]
    assert [r.request_id[3:] for r in requests[1:]] == [(0, 1), (1, 1), (2, 1), (4, 1), (0, 2), (1, 2), (2, 2), (0, 3),
                                                        (1, 3)]  # fmt: skip


def test_the_forced_words_stand_on_a_line_of_their_own():
    policy = Policy(Script((("The answer is 2.", " try 3."),), chat_tokenizer()), None, chat_tokenizer())
    requests = [Request((7,), 1, ("eval", "game", "a"))]
    ((answer,),) = forced_backtracks.sample(policy, requests, SamplingParams(max_tokens=99), 1)
    assert policy.tokenizer.decode(answer.token_ids) == f"The answer is 2.\n{WORDS} try 3."
    assert len(answer.forced) == forced_backtracks.most_forced_tokens(policy.tokenizer, 1) == len(WORDS) + 1


def test_without_a_floor_nothing_is_forced():
    answers, requests = sample(0)
    assert len(requests) == 1 and all(a.forced == a.forced_at == [] for a in answers)
    assert [TOKENIZER.decode(a.token_ids) for a in answers] == [texts[0].strip("|") for texts in SCRIPT]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, the result of the suite with a floor of 1)"""
    folder = epath.Path(tmp_path_factory.mktemp("eval")) / "game"
    return folder, evaluate(folder, 1)


def evaluate(folder, min_backtracks, **changes):
    suite = Suite("game", [PROBLEM], {}, {})
    c = cfg.Eval(max_tokens=MAX_TOKENS, num_samples=len(SCRIPT), min_backtracks=min_backtracks, token_limits=(5, 9))
    with contextlib.closing(Verifier()) as verifier:
        return suites.evaluate(folder, suite, c, scripted.policy(Script()), verifier, {"versions": {}} | changes)


def test_the_verdict_is_over_the_whole_text_and_forced_words_are_marked(evaluated):
    folder, result = evaluated
    rows = responses.read_parquet(folder / suites.ANSWERS)
    assert [r["correct_strict"] for r in rows] == [False, True, True, False, False]  # the first answer is spoiled
    assert [r["spoils"] for r in rows] == [1, 0, 0, 0, 0] and [r["repairs"] for r in rows] == [0, 1, 1, 0, 0]
    assert [len(r["forced_at"]) for r in rows] == list(FORCED) and result["forced_to_go_back"] == 0.6
    assert all(row["response"][at:].startswith(WORDS) for row in rows for at in row["forced_at"])
    sampled = [len(TOKENIZER.encode("".join(s).replace("|", ""))) + (not s[-1].endswith("|")) for s in SCRIPT]
    assert [r["tokens"] for r in rows] == sampled
    (answers,) = pooled.read(folder).values()
    assert [a.forced for a in answers] == [True, True, False, False, True]


def test_limits_of_tokens_count_sampled_tokens_alone(evaluated):
    folder, result = evaluated
    assert result["token_limits"][1]["mean_tokens"] == (4 * 9 + 6) / 5  # the fourth answer has six tokens
    answers = responses.read_parquet(folder / "responses-00000.parquet")
    kept = {limit: suites._cut(responses.SampledResponse(**answers[1]), limit, scripted.policy()) for limit in (6, 9)}
    assert (kept[6].text, kept[6].forced, kept[6].forced_at) == (MISS, [], [])
    assert kept[9].text == MISS + WORDS + AGAIN[: AGAIN.index(" from") + 5] and kept[9].forced == [6, 7, 8]


def test_answers_with_and_without_a_floor_do_not_mix(evaluated):
    folder, _ = evaluated
    with pytest.raises(AstroError, match=r"other settings \(min_backtracks was 1\)"):
        evaluate(folder, 0)


def test_pooled_answers_with_a_floor_are_a_model_of_their_own(evaluated, tmp_path):
    folder, _ = evaluated
    plain = epath.Path(tmp_path) / "game"
    evaluate(plain, 0)
    found = [e for f in (folder.parent, plain.parent) for e in (f / "results.json").write_text("{}") and pooled.find(f)]
    assert [e.model for e in found] == [f"{folder.parent.name}, at least 1 backtrack", plain.parent.name]
    floor = "astro-sft, at least 2 backtracks"
    assert pooled._pairs(["astro-sft", floor]) == [(floor, "astro-sft")]


def test_a_real_engine_continues_each_answer_as_if_it_were_alone():
    config = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=64)
    engine = Engine(config, one_device(), 0, max_num_seqs=1, prefix_cache_gib=0.001)  # one layout compiles fast
    policy = Policy(engine, tiny_params(config), TOKENIZER)
    ends = tuple(range(0, len(TOKENIZER), 4))  # so that most answers of random parameters end
    sampling = SamplingParams(max_tokens=12, stop_token_ids=ends)
    requests = [Request(tuple(TOKENIZER.prompt(p.prompt)), 2, ("eval", p.id)) for p in scripted.PROBLEMS[:3]]
    together = forced_backtracks.sample(policy, requests, sampling, 2)
    alone = [forced_backtracks.sample(policy, [r], sampling, 2)[0] for r in reversed(requests)]
    assert together == alone[::-1]
    plain = policy.generate(requests, sampling)
    pairs = zip(itertools.chain(*together), itertools.chain(*plain), strict=True)
    forced = [(answer, completion) for answer, completion in pairs if answer.forced]
    assert forced and all(a.token_ids[: a.forced[0]] == c.token_ids[:-1].tolist() for a, c in forced)
    assert max(len(a.token_ids) - len(a.forced) for group in together for a in group) <= 12
