"""What finished runs show: reads run folders and nothing else (no torch, no W&B, nothing of adarank).

files, states, load (folders to runs) → rows, settings, references, tables (configurations side by side) → pairs,
verdicts, trials, budgets, cautions (what may be said of them) → cells, notes (as strings), figures (the list of them;
plots/ draws) → page, terminal, export. `python analysis/compare.py RUNS_FOLDER` prints the comparison and writes
RUNS_FOLDER/report/index.html.
"""
