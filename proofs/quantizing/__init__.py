"""A checkpoint or a model, quantized after training, and what that did to each layer (`quantize`), by a plan of what
becomes of each tensor (`plan`), which rules of thumb can make (`recommend`). Imports `inputs` and `modes`."""
