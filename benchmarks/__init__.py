"""Measurements of Gossamer and its peers on the same work; `python -m benchmarks --list`.

`peers` says who takes part and with which settings, `workloads/` what they do, `adapters/` how each
family of frameworks trains or calls a model; `worker` is the process that one peer runs in,
`harness` asks all of them in turn and compares their results, `report` writes what came out.
"""
