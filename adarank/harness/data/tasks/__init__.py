"""Tasks: where the rows come from. Each task is a function in a file of its own that reads its data, checks it and
returns a `base.Task`. Shared: `base` (rows and tasks), `readers` (file formats), `hub` (Hugging Face data sets), `rows`
(checks of texts with labels) and `prompts` (checks of prompts with responses).
"""
