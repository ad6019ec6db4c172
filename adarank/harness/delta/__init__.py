"""What fine-tuning did to the weights: ΔW by its singular value decomposition, beside the W it was added to."""
