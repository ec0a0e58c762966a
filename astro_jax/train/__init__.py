"""Training: packed data, losses, one sharded step for SFT and GRPO, checkpoints."""
