"""The trainer of SFT, through the function that stages call."""

import gc
import json

import jax
import numpy as np
import pytest
from etils import epath
from helpers import assert_trees_close, countdown_tokenizer, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint
from astro_jax.train import data, sft
from astro_jax.train.data import Example

TOKENIZER = countdown_tokenizer(9)
CONFIG = tiny_config(n_layers=1, vocab_size=len(TOKENIZER))
TEXTS = [np.random.default_rng(i).integers(3, 20, 4 + i % 9).tolist() for i in range(12)]


def train(folder, texts=TEXTS, **settings):
    c = cfg.Sft(**{"learning_rate": 0.01, "batch_size": 2, "max_length": 16} | settings)
    params = jax.tree.map(jax.numpy.array, tiny_params(CONFIG))
    examples = [text if isinstance(text, Example) else Example((), text) for text in texts]
    return sft.train(epath.Path(folder), c, CONFIG, params, TOKENIZER, examples, one_device_train(), 0)


def test_learning_rate_of_1e18_stops_in_one_line_and_saves_no_model(tmp_path):
    with pytest.raises(AstroError, match=r"steps 2 to 4; the batch of step 4: \d+.*good checkpoint: none; [^\n]*$"):
        train(tmp_path / "astro-sft", num_train_epochs=3, learning_rate=1e18, warmup_ratio=0)
    assert not (tmp_path / "astro-sft" / "model").exists()


def test_model_that_the_last_update_broke_is_not_saved(tmp_path):
    """The only step has a finite loss and gradient. The loss after it has none."""
    with pytest.raises(AstroError, match=r"^astro-sft: the loss of the trained model is not finite[^\n]*$"):
        train(tmp_path / "astro-sft", TEXTS[:2], learning_rate=1e18, warmup_ratio=0)
    assert not (tmp_path / "astro-sft" / "model").exists()


def test_counts_name_examples_that_are_too_long(tmp_path, capsys):
    counts = train(tmp_path / "astro-sft", [*TEXTS, list(range(3, 20))], num_train_epochs=2)
    steps = len((tmp_path / "astro-sft" / "metrics.jsonl").read_text().splitlines())
    assert counts == {"examples": 13, "dropped": 1, "truncated": 0, "steps": steps}
    assert "astro-sft: 1 examples have more than max_length=16 tokens and are dropped" in capsys.readouterr().err
    assert train(tmp_path / "cut", [*TEXTS, list(range(3, 20))], overlong="truncate")["truncated"] == 1
    with pytest.raises(AstroError, match="example 12 has 18 tokens"):
        train(tmp_path / "refused", [*TEXTS, list(range(3, 20))], overlong="error")
    assert not (tmp_path / "refused").exists()


def test_wrapped_packing_takes_examples_of_any_length(tmp_path):
    counts = train(tmp_path / "astro-sft", [list(range(3, 20))], packing_strategy="wrapped", overlong="error")
    assert counts == {"examples": 1, "dropped": 0, "truncated": 0, "steps": 1}


@pytest.mark.slow
def test_resumed_run_holds_no_more_arrays_than_a_fresh_one(tmp_path, monkeypatch):
    """The initial parameters stayed beside the restored ones: 4.0 instead of 3.0 times the parameters."""
    live = []

    def counted(trainer, state, i, step=sft.SFTTrainer.step):
        live.append(sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted()))
        if len(live) == 2:
            raise KeyboardInterrupt
        return step(trainer, state, i)

    monkeypatch.setattr(sft.SFTTrainer, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "astro-sft", num_train_epochs=3, save_steps=1)
    gc.collect()  # the exception held the frames of the first run
    train(tmp_path / "astro-sft", num_train_epochs=3, save_steps=1)
    size = sum(x.nbytes for x in jax.tree.leaves(tiny_params(CONFIG)))
    assert live[2] - live[1] < 0.5 * size  # before the first step after the restart, and before step 2 of a fresh run


def test_held_out_loss_is_logged_every_eval_steps_and_at_the_end(tmp_path):
    """Two examples a prompt stay together: 2 of 4 prompts are held out with both of their examples."""
    examples = [Example((3, 4 + i // 2), TEXTS[i]) for i in range(8)]
    settings = {"num_train_epochs": 3, "batch_size": 1, "eval_share": 0.5, "eval_steps": 2}
    counts = train(tmp_path / "a", examples, **settings)
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    last = counts["steps"]
    assert counts["held_out"] == 4 and last == len(records) and "model_step" not in counts
    assert [r["step"] for r in records if "eval_loss" in r] == sorted({*range(2, last + 1, 2), last})
    assert records[-1]["eval_loss"] > 0 and records[-1]["eval_loss"] != records[1]["eval_loss"]
    assert [r["padding_rate"] for r in records] == pytest.approx([1 - r["tokens"] / 16 for r in records], abs=1e-5)
    _, params = checkpoint.load(tmp_path / "a" / "model")
    documents, _ = data.make_documents(
        [Example(e.prompt, [*e.completion, TOKENIZER.eos_token_id]) for e in examples], 16, "error"
    )
    _, held_out = data.hold_out(documents, 0.5, 0)
    total = weight = 0.0
    for d in held_out:
        logprobs = jax.nn.log_softmax(llama.forward(params, d.tokens[None, :-1], CONFIG))[0]
        total -= float(np.take_along_axis(np.asarray(logprobs), d.tokens[1:, None], axis=1).sum())
        weight += len(d.tokens) - 1
    assert records[-1]["eval_loss"] == pytest.approx(total / weight, rel=1e-5)


def test_best_step_by_the_held_out_loss_becomes_the_model(tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(sft.SFTTrainer, "_eval_loss", lambda trainer, params: np.float32(next(values, 2.0)))
    examples = [Example((3, 4 + i // 2), TEXTS[i]) for i in range(8)]
    settings = {
        "batch_size": 1,
        "num_train_epochs": 2,
        "eval_share": 0.5,
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
    }
    counts = train(tmp_path / "best", examples, load_best_model_at_end=True, **settings)
    assert counts["steps"] > 2 and counts["model_step"] == 2
    values = iter([3.0, 1.0, 2.0])
    last = train(tmp_path / "last", examples, **settings)
    assert "model_step" not in last
    (_, best_model), (_, last_model) = (checkpoint.load(tmp_path / name / "model") for name in ("best", "last"))
    assert not np.array_equal(best_model.embed, last_model.embed)


def test_accumulated_batches_train_as_whole_ones(tmp_path):
    for name, rows in (("whole", None), ("accumulated", 1)):
        train(tmp_path / name, batch_size=4, num_train_epochs=3, micro_batch_size=rows)
    whole, accumulated = (checkpoint.load(tmp_path / name / "model")[1] for name in ("whole", "accumulated"))
    assert_trees_close(accumulated, whole, rtol=1e-4, atol=1e-5)


def test_lora_trains_adapters_alone_and_saves_the_merged_model(tmp_path):
    counts = train(tmp_path / "lora", num_train_epochs=8, lora={"rank": 4, "target_modules": ["q_proj", "down_proj"]})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == counts["steps"] and np.mean(losses[-3:]) < np.mean(losses[:3])
    config, params = checkpoint.load(tmp_path / "lora" / "model")
    assert config == CONFIG
    base, same = tiny_params(CONFIG), {}
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(base), strict=True):
        same[jax.tree_util.keystr(path, simple=True, separator=".")] = bool((x == y).all())
    assert {name for name, equal in same.items() if not equal} == {"layers.wq", "layers.w_down"}
    saved = sum(p.stat().st_size for p in (tmp_path / "lora" / "checkpoints").rglob("*") if p.is_file())
    assert saved < 2 * 3 * 4 * llama.params.count(CONFIG)  # two checkpoints without the frozen weights


def test_lora_of_rank_0_is_one_line():
    with pytest.raises(AstroError, match="rank"):
        cfg.parse({"sft": {"lora": {"rank": 0}}})
