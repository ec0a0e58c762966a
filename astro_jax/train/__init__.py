"""Training: packing, losses, one sharded step for SFT and GRPO, checkpoints, curves.

`losses.mean_nll` is the loss of SFT, `policy_loss` has that of GRPO and its variants. `grpo.GRPOTrainer` samples,
scores and updates. `loop.run` is the loop around both, with checkpoints and exact resume.
"""
