"""muP on this code: the rules of a concrete model, and a coordinate check that can fail.

`table` and `expect` are arithmetic on shapes and load no JAX; `measure` runs the steps, `check` judges them.
"""
