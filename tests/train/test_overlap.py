"""Verification that overlaps sampling: the same rewards, in workers that judge while others are still sampled."""

import contextlib
import zlib

import pytest
from etils import epath
from grpo_fixtures import PROBLEMS, fresh, make_shared
from helpers import assert_trees_equal, chat_tokenizer, one_device, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import judge as judging
from astro_jax import llama, prompts
from astro_jax.errors import AstroError
from astro_jax.judge import RunJudge
from astro_jax.train.rewards import Rewarder, column_names
from astro_jax.types import Problem
from astro_jax.verify import Verifier, tasks
from astro_jax.verify.pool import Call
from astro_jax.verify.user_reward import RewardStream, UserReward
from astro_jax.verify.verifier import VerdictStream

MATH = [Problem(p.id, p.prompt, "1", task="math") for p in PROBLEMS]


@pytest.fixture(scope="module")
def verifier():
    """A verifier whose workers judge an answer that follows from the text."""

    def call(response, rule):
        return Call("math", ("1", f"\\boxed{{{zlib.crc32(response.text.encode()) % 2}}}", rule))

    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Verifier(cfg.Verify(num_workers=1))) as verifier:
        patch.setitem(tasks.VERIFIERS, "math", tasks.WorkerVerifier(call))
        yield verifier


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A judge with random parameters. One of two letters ends a judgement, wherever it stands."""
    tokenizer = chat_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer), n_layers=1)
    llama.save(epath.Path(tmp_path / "judge"), config, tiny_params(config, scale=0.1), tokenizer)
    (tmp_path / "rubric.txt").write_text("{{ problem }} {{ solution }}?")
    monkeypatch.setattr(
        judging, "read_verdict", lambda text, verdicts: text[-1] if text and text[-1] in verdicts else None
    )
    settings = cfg.Judge(model=str(tmp_path / "judge"), num_samples=4, pass_share=0.25, max_tokens=32)
    c = cfg.Config(verify=cfg.Verify(judge=settings, verdicts=("e", "t")), sampler=cfg.Sampler(max_num_seqs=4))
    return RunJudge(c, prompts.load({"evaluate": str(tmp_path / "rubric.txt")})["evaluate"], one_device())


def without_times(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("seconds_")}


@pytest.mark.slow
def test_step_is_bitwise_equal_with_and_without_overlap(verifier, tmp_path, monkeypatch):
    trainer = make_shared(MATH)
    trainer.rewarder = Rewarder(verifier, None, epath.Path(tmp_path / "rl"))

    state, metrics = trainer.step(fresh(), 1)
    after_one = dict(verifier.counts.by_status)
    assert after_one.keys() == {"correct", "wrong", "unparsed"}  # unparsed: cut off
    serial = make_shared(MATH)
    serial.rewarder = Rewarder(verifier, None, epath.Path(tmp_path / "serial"))
    monkeypatch.setattr(serial.rewarder, "stream", lambda *_: contextlib.nullcontext())
    expected, serial_metrics = serial.step(fresh(), 1)
    assert_trees_equal(state, expected)
    assert without_times(metrics) == without_times(serial_metrics)
    assert verifier.counts.by_status == {status: 2 * n for status, n in after_one.items()}
    records = [(tmp_path / name / "rewards" / "step-00001.jsonl") for name in ("rl", "serial")]
    assert records[0].read_bytes() == records[1].read_bytes()
    # After a kill the record decides, and nobody is asked.
    again, replayed = trainer.step(fresh(), 1)
    assert_trees_equal(again, state)
    assert without_times(replayed) == without_times(metrics)
    assert verifier.counts.by_status == {status: 2 * n for status, n in after_one.items()}


def test_responses_are_judged_before_the_last_one_has_ended(verifier, monkeypatch):
    trainer, events = make_shared(MATH), []
    trainer.rewarder = Rewarder(verifier)

    def add(stream, index, response, add=VerdictStream.add):
        events.append((index, trainer.engine.stats.tokens))
        add(stream, index, response)

    monkeypatch.setattr(VerdictStream, "add", add)
    groups = trainer.generate_rollouts(trainer._reshard(fresh().params), 0)
    assert sorted(index for index, _ in events) == list(range(12))
    assert len({tokens for _, tokens in events}) > 1  # the sampler went on between them
    for index, (g, j) in enumerate((g, j) for g in range(3) for j in range(4)):
        text = trainer.tokenizer.decode(groups[g][j].completion_ids.tolist())
        expected = groups[g][j].stopped and zlib.crc32(text.encode()) % 2 == 1
        assert groups[g][j].verdict.correct == expected, index


@pytest.fixture(scope="module")
def user_reward(tmp_path_factory):
    """A reward that follows from the verdict and the length."""
    path = tmp_path_factory.mktemp("reward") / "my_reward.py"
    path.write_text(
        "def reward(completion_ids, correct, **columns):\n"
        "    return [None if c is None else c + len(ids) / 7 for ids, c in zip(completion_ids, correct)]\n"
    )
    with contextlib.closing(UserReward(f"{path}:reward", column_names(MATH), 20.0, num_workers=1)) as user_reward:
        yield user_reward


def test_user_written_reward_is_bitwise_equal_with_and_without_overlap(verifier, user_reward, tmp_path, monkeypatch):
    trainers = [make_shared(MATH) for _ in range(2)]
    for trainer, name in zip(trainers, ("overlapping", "serial"), strict=True):
        trainer.rewarder = Rewarder(verifier, user_reward, epath.Path(tmp_path / name))
    monkeypatch.setattr(trainers[1].rewarder, "stream", lambda *_: contextlib.nullcontext())
    state, metrics = trainers[0].step(fresh(), 1)
    expected, serial_metrics = trainers[1].step(fresh(), 1)
    assert_trees_equal(state, expected)
    assert without_times(metrics) == without_times(serial_metrics) and metrics["reward_std"] > 0
    records = [(tmp_path / name / "rewards" / "step-00001.jsonl") for name in ("overlapping", "serial")]
    assert records[0].read_bytes() == records[1].read_bytes()
    # After a kill the record decides, and the function is not called.
    monkeypatch.setattr(user_reward, "stream", None)
    assert_trees_equal(trainers[0].step(fresh(), 1)[0], state)


def test_user_written_reward_is_called_before_all_groups_are_sampled(verifier, user_reward, monkeypatch):
    """The verdicts on numbers need no worker: a group is rewarded as soon as its last completion has ended."""
    trainer, events = make_shared([Problem(p.id, p.prompt, "1", task="number") for p in PROBLEMS]), []
    trainer.rewarder = Rewarder(verifier, user_reward)
    add, judge = RewardStream.add, Rewarder.judge
    monkeypatch.setattr(
        RewardStream, "add", lambda self, group, columns: events.append(group) or add(self, group, columns)
    )
    monkeypatch.setattr(Rewarder, "judge", lambda *args: events.append("sampled") or judge(*args))
    groups = trainer.generate_rollouts(trainer._reshard(fresh().params), 0)
    assert sorted(events[:3]) == [0, 1, 2] and events[3:] == ["sampled"]
    assert [[r.reward for r in g] for g in groups] == [[len(r.completion_ids) / 7 for r in g] for g in groups]


def test_error_of_a_user_written_reward_ends_an_overlapping_step_too(verifier, tmp_path):
    (tmp_path / "broken.py").write_text("def reward(**columns):\n    return [1 / 0]\n")
    trainer = make_shared(MATH)
    with contextlib.closing(UserReward(f"{tmp_path}/broken.py:reward", column_names(MATH), 20.0, 1)) as broken:
        trainer.rewarder = Rewarder(verifier, broken)
        with pytest.raises(AstroError, match="ZeroDivisionError: division by zero"):
            trainer.generate_rollouts(trainer._reshard(fresh().params), 0)


def test_a_judge_decides_the_same_with_overlap_without_it_and_after_a_kill(verifier, judge, tmp_path, monkeypatch):
    asked = []

    def ask(responses):
        asked.append(responses)
        return judge(responses)

    monkeypatch.setattr(verifier, "_judge", ask)
    trainer = make_shared(MATH)
    params = trainer._reshard(fresh().params)

    def verdicts(name, **changes):
        trainer.rewarder = Rewarder(verifier, None, epath.Path(tmp_path / name))
        for attribute, value in changes.items():
            monkeypatch.setattr(trainer.rewarder, attribute, value)
        return [r.verdict for group in trainer.generate_rollouts(params, 1) for r in group]

    judged = verdicts("rl")
    responses = asked[0]
    approved = judge(responses)
    assert {True, False} == set(approved)
    assert [v.correct for v in judged if v.answer is not None] == approved  # the judge is asked about answers alone
    judge.unload()  # as between two stages; a restart loads the judge too
    assert verdicts("serial", stream=lambda *_: contextlib.nullcontext()) == judged and asked[1] == responses
    assert judge(responses[::-1]) == approved[::-1] and judge(responses[3:5]) == approved[3:5]
    assert verdicts("rl") == judged and len(asked) == 2  # after a kill the record decides
