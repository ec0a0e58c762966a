"""Read problems, split them into training and evaluation, and keep evaluation problems out of training.

Modules:
  source: the problems of a run, from the source that the config names. A new kind of source is one new row of SOURCES.
  records, hub, gym: problems from a JSONL file, from data sets of the Hugging Face hub, from reasoning-gym.
  split: the split by a hash of the text, and the draw by a seed.
  decontaminate: remove training problems that overlap with evaluation problems.
  solutions: worked solutions that a weak base model is fine-tuned on first.
"""
