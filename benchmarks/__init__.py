"""Measurements of Gossamer and its peers on the same work; `python -m benchmarks --list`.

`peers` says who takes part and with which settings, `workloads/` what they do, `adapters/` how each
family of frameworks trains or calls a model; `worker` is the process that one peer runs in,
`process` the other end of it, `harness` asks all of them in turn and compares their results,
`apart` measures first steps, rooflines and busy machines, `bars` holds figures against what is
demanded, `report` and `plot` write what came out.
"""
