"""Accuracy at equal numbers of generated tokens (`astro budgets`).

One answer of a model that searches inside its answer is compared with other uses of as many tokens: the majority vote
of a policy, best-of-N with the verifier, and a tree search outside of the model. `models` reads the command's models,
`measure` samples and searches, `figures` estimates accuracy at a budget, and `page` shows it.
"""
