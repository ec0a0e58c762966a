"""The labelled pairs of golden/verify_pairs*.jsonl: a gold answer, a response and the verdict by mathematics.

Two authors made the two sets. The author of the second set had not seen the code that the labels test.
"""

import json
import pathlib

FILES = ("verify_pairs.jsonl", "verify_pairs_2.jsonl")
GOLDEN = pathlib.Path(__file__).with_name("golden")
PAIRS = [json.loads(line) for name in FILES for line in (GOLDEN / name).read_text().splitlines()]
