"""Measurements that open a finished run and load its weights: ablations, score fidelity, weight change,
forgetting, prefix ranks.

`cli` is the command (`adarank probe`, `experiments/probe.py`); docs/probes.md describes the files it writes.
"""
