"""From search trees to chains of thought (paper, sections 2.3 and 2.4).

`linearize` is Algorithm 1, `procedure_cloning` writes its node sequences as text, `rewriting` lets a model write them,
and `dataset` is the stage.
"""
