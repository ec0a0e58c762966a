"""Search trees over reasoning steps (paper, sections 2.1 and 2.2).

`mcts` holds the paper's algorithm, `rounds` and `best_of_n` ours, `tree` the data, `run` the stage.
"""
