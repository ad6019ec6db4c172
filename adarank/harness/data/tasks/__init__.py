"""Tasks, which provide the rows. Each task is a function in a separate file that reads its data, checks it and returns
a `base.Task`. Shared modules are `base` (rows and tasks), `readers` (file formats), `hub` (Hugging Face data sets),
`rows` (checks of texts with labels) and `prompts` (checks of prompts with responses).
"""
