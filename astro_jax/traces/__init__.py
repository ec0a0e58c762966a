"""From search trees to chains of thought (paper, sections 2.3 and 2.4)."""
