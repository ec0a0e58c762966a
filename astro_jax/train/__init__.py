"""Training: packing, losses, one sharded step for SFT and GRPO, checkpoints, curves.

`losses.grpo_loss` is the loss of GRPO, `losses.cross_entropy` that of SFT. `grpo.GRPOTrainer` samples, scores and
updates. `loop.run` is the loop around both, with checkpoints and exact resume.
"""
