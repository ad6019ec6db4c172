"""Turns finished runs into tables, verdicts, figures and a report. It reads only run folders and needs no torch or W&B.

load (folders to runs) → rows, settings, tables (configurations next to each other) → stats, verdicts, rank_maps,
score_fidelity, pruning, weight_change, forgetting, prefixes, fairness (conclusions and caveats) → format_table (as
text), measures (claims about the measurements of `adarank probe`), figures and plots → report, export.
`python analysis/compare.py RUNS_FOLDER` prints the comparison and writes RUNS_FOLDER/report/index.html.
"""
