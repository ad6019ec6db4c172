"""What finished runs show: reads run folders and nothing else (no torch, no W&B, nothing of adarank).

load (folders to runs) → tables (configurations, grouped; numbers from stats, decisions from verdicts) → plots, report.
`python analysis/compare.py RUNS_FOLDER` prints the comparison and writes RUNS_FOLDER/report/index.html.
"""
