"""What a run trains on and how it is measured.

`tasks/` reads: one file per task turns files, a package or a hub data set into rows of plain text, or image files, and
labels (`Task`). It knows no tokeniser and no model. `task_types/` turns those rows into batches, a loss and an
evaluation: one file per type of task (classify, extract, generate, images, seq2seq). `metrics/` holds the metrics that
both name.
"""
