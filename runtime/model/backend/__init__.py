"""Models that have no code of their own here: transformers' modules over our cache and kernels.

transformers says what a model computes; attention, products, norms, rotary tables and experts are
replaced by ours, so that a row's result does not depend on its batch. transformers is imported only
when such a model is opened.
"""
