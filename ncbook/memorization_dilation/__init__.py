"""The positive-features model with label smoothing, and the memorization-dilation model of label noise."""
