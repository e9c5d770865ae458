"""What quantizers are tried on, and how results are compared: the numbers of a format, the knife edges between
them, Hypothesis strategies, tensors of a checkpoint, the digit classifier; bit patterns, and the one
comparator. Imports `modes`."""
