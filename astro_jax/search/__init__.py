"""Monte Carlo tree search over reasoning steps (paper, sections 2.1 and 2.2).

`mcts` holds the algorithm, `tree` the data, `run` the stage.
"""
