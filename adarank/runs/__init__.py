"""Run folders, without torch: file names, atomic writes, lock, state, status, module names.

`harness` writes them; `probe`, `analysis` and `experiments` read them.
"""
