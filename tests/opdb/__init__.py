"""PyTorch's operator database over Gossamer: values and first gradients of every shared name.

`make opdb` runs everything and prints the table; `tests/test_opdb.py` runs a few samples of every
name in `passing.txt`. Files: `database` what to run, `calls` how a name is called on each side,
`check` one sample, `exceptions` where and why we deviate, `__main__` the driver.
"""
