"""A whole run on a game that a model of a few thousand parameters learns in seconds, for several tests."""

import json

from astro_jax import config as cfg

# Two numbers up to 4, "+" and "-": many random attempts are right, and many miss.
MICRO = {
    "model": "scratch",
    "problems": dict(count=2, max_number=4, max_value=9, ops="+-", held_out=0.4, search=7, rl=6, eval=5),
    "architecture": dict(d_model=16, d_ff=32, n_layers=1, n_heads=2, n_kv_heads=1, max_positions=96),
    "corpus": dict(documents=8000, solved=0.1, drills=0.0, recall=0.0),
    "sampler": dict(max_num_seqs=8, num_scheduler_steps=16),
    "search": dict(num_proposals=8, num_rollouts=2, num_simulations=2, max_depth=3, max_concurrent_trees=4,
                   shard_size=4, max_step_tokens=12, max_rollout_tokens=16),
    "traces": dict(replay=0.25),
    "pretrain": dict(learning_rate=0.02, batch_size=16, max_length=32, save_steps=100),
    "sft": dict(learning_rate=0.003, batch_size=2, max_length=96, save_steps=3, num_train_epochs=4),
    "grpo": dict(max_steps=2, prompts_per_step=4, num_generations=4, max_completion_length=16, learning_rate=0.001,
                 max_length=64, save_steps=1),
    "eval": dict(max_tokens=16, shard_size=4),
}  # fmt: skip


def micro(out, **changes):
    """The config of a micro run in the folder `out`; a change of a section is merged key by key."""
    raw = {**MICRO, "out": str(out)}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return cfg.parse(raw)


def files(folder):
    """All files below a folder, by relative name, without the records of the commands that made them."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "sessions")
    return {str(p.relative_to(folder)): p for p in paths}


def products(folder):
    """What must not depend on how often a run was stopped: the bytes of all data, and the results without times."""
    paths = {n: p for n, p in files(folder).items() if p.suffix in (".jsonl", ".gz")}
    data = {n: p.read_bytes() for n, p in paths.items() if p.name != "timings.jsonl"}
    results = json.loads((folder / "results.json").read_text())
    return data | {"results": {k: v for k, v in results.items() if k != "wall_s"}}
