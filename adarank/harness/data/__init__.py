"""A run's data, loss and evaluation.

`tasks/` has one file per task, which reads files, a package or a hub data set into rows of plain text or images with
labels (`Task`) and depends on no tokeniser or model. `task_types/` has one file per type of task (classify, extract,
generate, images, seq2seq), which turns those rows into batches, a loss and an evaluation. `metrics/` holds the metrics
that both refer to.
"""
