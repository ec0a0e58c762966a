"""The trainer of SFT, through the function that stages call."""

import jax
import numpy as np
import pytest
from etils import epath
from helpers import countdown_tokenizer, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError

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
