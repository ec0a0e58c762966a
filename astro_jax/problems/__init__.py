"""Read problems, split them into training and evaluation, and keep evaluation problems out of training.

Modules:
  source: the problems of all sources that the config names. A new kind of source is one new row of SOURCES.
  draws: the problems that search, RL and evaluation take.
  description: what `astro problems` shows.
  suites, suite_records: the evaluation suites by name, and problems from their records.
  record_files: the records of a JSONL, JSON or Parquet file.
  records, hub, gym: problems from a JSONL file, from data sets of the Hugging Face hub, from reasoning-gym.
  split: the split by a hash of the text, and the draw by a seed.
  lengths: leave out the prompts that are too long for RL.
  decontaminate: remove training problems that overlap with evaluation problems.
  solutions: worked solutions that a weak base model is fine-tuned on first.
"""
