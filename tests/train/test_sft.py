"""The trainer of SFT, through the function that stages call."""

import gc

import jax
import numpy as np
import pytest
from etils import epath
from helpers import countdown_tokenizer, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError
from astro_jax.train import sft

TOKENIZER = countdown_tokenizer(9)
CONFIG = tiny_config(n_layers=1, vocab_size=len(TOKENIZER))
TEXTS = [np.random.default_rng(i).integers(3, 20, 4 + i % 9).tolist() for i in range(12)]


def train(folder, texts=TEXTS, **settings):
    c = cfg.Sft(**{"learning_rate": 0.01, "batch_size": 2, "max_length": 16} | settings)
    params = jax.tree.map(jax.numpy.array, tiny_params(CONFIG))
    return pipeline.train_sft(epath.Path(folder), c, CONFIG, params, TOKENIZER, texts, one_device_train(), 0)


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
