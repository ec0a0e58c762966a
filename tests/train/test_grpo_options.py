"""GRPO's options inside a step: the reference model, temperature, masks, dynamic sampling, and the exact resume."""

import functools

import jax
import numpy as np
import pytest
from etils import epath
from grpo_fixtures import (
    CONFIG,
    GRPO,
    HASH_VERIFIER,
    PROBLEMS,
    FunctionVerifier,
    Killed,
    fresh,
    logprobs_without_packing,
    make,
    make_shared,
    pad,
    padded_logprobs,
    random_rollouts,
    read_lines,
    run_loop,
)
from helpers import assert_trees_equal, one_device, tiny_params

from astro_jax import config as cfg
from astro_jax.llama import params as llama_params
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.sampler import Engine
from astro_jax.train.micro_batches import micro_batch_sizes, padding_rate
from astro_jax.train.rewards import Rewarder
from astro_jax.train.rollouts import Rollout, RolloutLog, repetition, reward_array
from astro_jax.train.state import abstract_state, make_optimizer
from astro_jax.types import Verdict

TEMPERATURE = 0.7
ALL = {
    "beta": 0.2, "temperature": TEMPERATURE, "importance_sampling_cap": 2.0, "loss_type": "grpo", "delta": 3.0,
    "importance_sampling_level": "sequence", "steps_per_generation": 2, "max_log_ratio": 5.0,
}  # fmt: skip


def reference():
    return tiny_params(CONFIG, scale=0.1)


@functools.cache
def optioned():
    """A trainer with many options, and its own compiled functions."""
    return make(reference=reference(), **ALL)


def logprobs_at(params, rollouts, temperature):
    """For each rollout the log-probabilities of its completion, from logits over the temperature, without packing."""
    tokens, mask = pad(rollouts)
    scaled = np.asarray(padded_logprobs(params, tokens), np.float64) / temperature
    logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return [logprobs[row, np.nonzero(m)[0] - 1, tokens[row, m]] for row, m in enumerate(mask)]


@pytest.mark.slow
def test_ratio_has_the_temperature_of_the_sampler():
    params = tiny_params(CONFIG)
    rollouts = [r for group in optioned().generate_rollouts(params, 0) for r in group]
    for r, expected in zip(rollouts, logprobs_at(params, rollouts, TEMPERATURE), strict=True):
        np.testing.assert_allclose(r.logprobs, expected, atol=1e-5)
    _, metrics = optioned()._update(fresh(), optioned()._pack(rollouts, np.ones(len(rollouts))))
    assert metrics["max_logp_gap"] < 1e-5 and metrics["max_ratio"] == pytest.approx(1, abs=1e-5)


def test_kl_is_to_the_reference_model_and_lets_completions_without_advantage_learn():
    params, (rollouts, advantages) = tiny_params(CONFIG), random_rollouts()
    update = optioned()._pack(rollouts, 0 * advantages)
    state, metrics = optioned()._update(fresh(), update)
    log_ratio = [
        ref - new
        for ref, new in zip(
            logprobs_at(reference(), rollouts, TEMPERATURE), logprobs_at(params, rollouts, TEMPERATURE), strict=True
        )
    ]
    kl = [np.exp(x) - x - 1 for x in log_ratio]
    assert metrics["kl"] == pytest.approx(np.concatenate(kl).mean(), rel=1e-3) and metrics["kl"] > 0.01
    assert metrics["loss"] == pytest.approx(0.2 * np.mean([x.mean() for x in kl]), rel=1e-3)  # loss_type: grpo
    assert metrics["no_gradient_steps"] == 0 and not np.array_equal(state.params.embed, params.embed)


def test_reference_model_is_sharded_like_the_policy_and_absent_without_kl():
    sharding = train_sharding(make_mesh(fsdp=2, tp=2))
    sharded = jax.device_put(reference(), llama_params.shardings(CONFIG, sharding))
    split = make(sharding=sharding, reference=sharded, beta=0.2)
    rows = split._pack(*random_rollouts()).micro_batches[0].batch
    scored = split._score(split.reference, sharding.device_put(rows, "batch"))
    assert scored.sharding.is_equivalent_to(sharding.named("batch"), 2)
    whole = make(beta=0.2, reference=reference())._score(reference(), rows)
    np.testing.assert_allclose(scored, whole, atol=1e-4)
    like = abstract_state(CONFIG, make_optimizer(GRPO, 1), sharding).params
    assert all(x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (split.reference, like)), strict=True))
    without = make_shared()
    assert without.reference is None
    (rows, *_) = without._pack(*random_rollouts()).micro_batches
    assert rows.ref_logprobs is None and rows.old_logprobs is None and len(jax.tree.leaves(rows)) == 6


def test_old_log_probabilities_are_the_trainers_where_the_sampler_is_corrected():
    params, (rollouts, advantages) = tiny_params(CONFIG), random_rollouts()
    update = optioned()._with_old_logprobs(params, optioned()._pack(rollouts, advantages))
    expected = np.concatenate(logprobs_at(params, rollouts, TEMPERATURE))  # the KL term needs all of them
    found = [np.asarray(m.old_logprobs)[m.batch.loss_weights > 0] for m in update.micro_batches]
    np.testing.assert_allclose(np.sort(np.concatenate(found)), np.sort(expected), atol=1e-4)
    _, metrics = optioned()._update(fresh(), update)
    assert metrics["max_ratio"] == pytest.approx(1, abs=1e-5) and metrics["max_logp_gap"] > 0.5


def test_gap_between_rounded_weights_of_the_sampler_and_the_trainer_is_corrected():
    """Rollouts of int8 weights and an int8 cache; the old log-probabilities are those of the float32 policy."""
    int8 = Engine(
        CONFIG, one_device(), 3, max_num_seqs=2, num_scheduler_steps=4, quantization="int8", kv_cache_dtype="int8"
    )
    t, params = make(engine=int8, importance_sampling_cap=2.0), tiny_params(CONFIG)
    rollouts = [r for group in t.generate_rollouts(t._reshard(params), 0) for r in group]
    exact = np.concatenate(logprobs_without_packing(params, rollouts))
    assert 1e-4 < np.abs(np.concatenate([r.logprobs for r in rollouts]) - exact).mean() < 0.1
    scored = t._with_old_logprobs(params, t._pack(rollouts, np.ones(len(rollouts)))).micro_batches
    is_learned = [m.batch.loss_weights > 0 for m in scored]
    old, sampled = (
        np.concatenate([np.asarray(getattr(m, name))[x] for m, x in zip(scored, is_learned, strict=True)])
        for name in ("old_logprobs", "sampler_logprobs")
    )
    np.testing.assert_allclose(np.sort(old), np.sort(exact), atol=1e-5)
    np.testing.assert_array_equal(np.sort(sampled), np.sort(np.concatenate([r.logprobs for r in rollouts])))


def test_step_with_all_options_is_repeated_bitwise():
    (a, left), (b, _) = optioned().step(fresh(), 2), optioned().step(fresh(), 2)
    assert_trees_equal(a, b)
    assert left["kl"] > 0 and a.step == 2
    held_out = {"eval_solve_rate", "eval_solve_rate_greedy", "eval_mean_backtracks"}
    assert set(cfg.GUARD_METRICS) - {"gen_batches"} - held_out <= left.keys()
    other = {"learning_rate", "padding_rate", "tokens", "seconds_reshard", "seconds_sampling", "seconds_verification"}
    assert left.keys() - {*cfg.GUARD_METRICS} == {*other, "seconds_update"}


# ---- Which completions are learned


def test_truncated_completions_can_be_left_out_of_the_loss():
    masked, plain = make_shared(mask_truncated_completions=True), make_shared()
    groups = plain.generate_rollouts(tiny_params(CONFIG), 0)
    rewards = reward_array(groups)
    stopped = np.asarray([r.stopped for group in groups for r in group])
    assert 0 < stopped.sum() < 12
    (a, learned), (b, everything) = masked._advantages(groups, rewards), plain._advantages(groups, rewards)
    np.testing.assert_array_equal(a, b)  # a truncated completion still counts in its group
    np.testing.assert_array_equal(learned, everything & stopped)


def test_responses_worse_than_their_group_teach_nothing_with_positive_advantages_only():
    positive, plain = make_shared(positive_advantages_only=True), make_shared()
    groups = plain.generate_rollouts(tiny_params(CONFIG), 0)
    rewards = np.asarray([[1.0, -1, -1, -1], [1, 1, 1, -1], [1, 1, 1, 1]])
    (a, learned), (b, everything) = positive._advantages(groups, rewards), plain._advantages(groups, rewards)
    np.testing.assert_array_equal(a, np.where(b > 0, b, 0))
    np.testing.assert_array_equal(learned, everything)
    members = [r for group in groups for r in group]
    (update,) = [positive._pack(members, a)]
    assert update.tokens == sum(len(r.completion_ids) for r in members)  # the weights are those of all responses
    assert (np.concatenate([m.advantages for m in update.micro_batches]) >= 0).all()


def test_penalty_of_length_is_part_of_the_advantage_but_not_of_the_reward():
    punished = make_shared(soft_punish_cache=6)
    groups = punished.generate_rollouts(tiny_params(CONFIG), 0)
    advantages, _ = punished._advantages(groups, reward_array(groups))
    for group, found in zip(groups, advantages.reshape(3, 4), strict=True):
        r = np.asarray([r.reward - max(0, len(r.completion_ids) - 6) / 6 for r in group])
        np.testing.assert_allclose(found, (r - r.mean()) / (r.std() + 1e-6), atol=1e-9)
    _, metrics = punished.step(fresh(), 0)
    assert metrics["reward_mean"] == pytest.approx(reward_array(groups).mean())


# ---- Micro-batches


def test_micro_batches_have_at_most_five_percent_padding():
    """360 completions of the lengths of the quickstart, in rows of 256 tokens and micro-batches of 32 rows."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(224, rng.lognormal(4.4, 0.6, 360).astype(int) + 1)
    verdict = Verdict(True, True, None, 0)
    rollouts = [Rollout((1,) * 14, np.ones(n, np.int32), np.zeros(n, np.float32), verdict, True, 1.0) for n in sizes]
    update = make(max_length=256, micro_batch_size=32)._pack(rollouts, np.ones(360))
    assert padding_rate(update) < 0.05
    assert {len(m.batch.tokens) for m in update.micro_batches} == {32, 4}
    assert sum(int((m.batch.loss_weights > 0).sum()) for m in update.micro_batches) == sizes.sum()


@pytest.mark.parametrize("rows, size, devices, expected", [
    (41, 32, 1, [32, 4, 4, 4]), (64, 32, 1, [32, 32]), (3, 32, 1, [4]), (31, 32, 1, [32]), (5, 4, 1, [4, 4]),
    (9, 8, 1, [8, 1]), (20, 16, 4, [16, 4]), (17, 16, 4, [16, 4]), (9, 2, 3, [3, 3, 3]),
])  # fmt: skip
def test_rows_of_micro_batches_by_hand(rows, size, devices, expected):
    c = GRPO.model_copy(update={"micro_batch_size": size})
    assert micro_batch_sizes(rows, c, train_sharding(make_mesh(data=devices))) == expected


# ---- Dynamic sampling


class PickyVerifier(FunctionVerifier):
    """Finds all completions of some problems wrong: their groups have no variance."""

    def __init__(self):
        super().__init__(lambda r: r.problem.id in ("p1", "p3", "p4", "p6") and HASH_VERIFIER.is_correct(r))


def test_dynamic_sampling_goes_on_until_enough_groups_have_different_rewards():
    dynamic, batches = make_shared(verifier=PickyVerifier(), max_num_gen_batches=3), []
    for i in range(3):
        groups = dynamic._generate(tiny_params(CONFIG), i)
        ids, usable = dynamic.examples(i), [len({r.reward for r in group}) > 1 for group in groups]
        assert len(ids) == len(groups) == 3 * dynamic._batches
        assert sum(usable) >= 3 or dynamic._batches == 3
        assert sum(usable[:-3]) < 3  # no batch more than needed
        assert len(set(ids[:7])) == min(7, len(ids))  # no problem comes again before all have come
        _, learned = dynamic._advantages(groups, reward_array(groups))
        assert sorted({j // 4 for j in np.flatnonzero(learned)}) == [j for j, u in enumerate(usable) if u][:3]
        assert dynamic._prompt_indices(i) == make_shared()._prompt_indices(i)  # the first batch is as without
        batches.append(dynamic._batches)
    assert max(batches) > 1
    _, metrics = dynamic.step(fresh(), 2)
    assert metrics["gen_batches"] == batches[2] and metrics["zero_std_rate"] == pytest.approx(1 - np.mean(usable))


def train(folder, kill_at=None):
    """Four steps with dynamic sampling."""
    verifier = PickyVerifier()
    dynamic = make_shared(verifier=verifier, max_num_gen_batches=3, log=RolloutLog(epath.Path(folder)))
    dynamic.rewarder = Rewarder(verifier, folder=epath.Path(folder), keep_steps=2, max_batches=3)
    return run_loop(folder, dynamic, kill_at=kill_at)


def test_resume_with_dynamic_sampling_is_bitwise_equal(tmp_path):
    expected = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=3)
    assert_trees_equal(train(tmp_path / "killed"), expected)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        whole, killed = ((tmp_path / run / name).read_text() for run in ("whole", "killed"))
        assert whole == killed and whole.count("\n") == 4
    assert max(r["gen_batches"] for r in read_lines(tmp_path / "whole/metrics.jsonl")) > 1
    # Only the records of the last steps are kept, each batch in its own file.
    kept = sorted(int(path.stem[5:]) // 3 for path in (tmp_path / "whole/rewards").iterdir())
    assert set(kept) == {2, 3} and len(kept) > 2


# ---- Texts and metrics


def test_texts_of_a_step_are_written_with_verdicts(tmp_path):
    logged = make_shared(log=RolloutLog(epath.Path(tmp_path)), logged_groups=2)
    for i in (0, 1, 2, 1):  # step 1 runs again, after a kill or a rollback
        logged.step(fresh(), i)
    records = read_lines(tmp_path / "rollouts.jsonl")
    assert [r["step"] for r in records] == [1, 1, 2, 2]
    groups = logged.generate_rollouts(tiny_params(CONFIG), 0)
    by_id = {p.id: p for p in PROBLEMS}
    for record, group, name in zip(records[:2], groups[:2], logged.examples(0)[:2], strict=True):
        assert record["problem"] == name and record["prompt"] == by_id[name].prompt
        for c, r in zip(record["completions"], group, strict=True):
            assert c["text"] == logged.tokenizer.decode(r.completion_ids.tolist()) and c["reward"] == r.reward
            assert c["status"] == r.verdict.status and c["tokens"] == len(r.completion_ids)


def test_repetition_counts_sequences_of_four_tokens_that_came_before():
    assert repetition(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(0.2)
    assert repetition(np.arange(50)) == repetition(np.array([5, 5, 5])) == 0
    assert repetition(np.full(103, 7)) == 0.99
    assert repetition(np.array([], np.int32)) == 0
