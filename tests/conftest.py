"""Settings that must be in place before the first use of JAX."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# The tests are made for a CPU, also where there is an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# XLA takes 5 to 11 s of CPU time to optimize a program of a tiny model, and 1 s to compile it without. The fixture
# `optimized` turns optimization on. The time limit of a collective call (40 s) ends the process on a busy machine.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "ASTRO_TEST_XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = os.environ["ASTRO_TEST_XLA_FLAGS"]

# All workers and subprocesses of one test run share one compilation cache: a program is compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="astro-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

# Eight devices, so that sharded code is tested as sharded code.
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()
del os.environ["XLA_FLAGS"]  # XLA has read them. libtpu, which does not know all of them, would end the process.

# Silent broadcasting between ranks hides shape errors.
jax.config.update("jax_numpy_rank_promotion", "raise")


# The files that take longest. Two workers that begin with these end at about the same time.
LONGEST = (
    "plan/test_tpu.py",
    "llama/test_smollm2.py",
    "test_pipeline.py",
    "test_distributed.py",
    "sampler/test_engine.py",
    "test_run_plan.py",
    "test_stage_inputs.py",
    "sweep/test_sweep.py",
    "sampler/test_generation_loop.py",
    "test_importing.py",
    "test_notebook.py",
    "report/test_browser.py",
    "plan/test_plan_programs.py",
    "problems/test_word_problem_run.py",
)


def pytest_collection_modifyitems(items):
    """Sort the files by their place in LONGEST; the others keep their order."""
    folder = Path(__file__).parent

    def rank(item):
        name = str(item.path.relative_to(folder))
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A process may map only so much memory: thousands of compiled programs, of all modules, end in an abort of XLA."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimized():
    """XLA optimizes the programs of a module, as outside of the tests."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
