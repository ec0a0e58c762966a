"""Monte Carlo tree search over reasoning steps (paper, sections 2.1 and 2.2)."""
