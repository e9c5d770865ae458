"""Every quantizer in every mode on real tensors (`check`) and on all 16-bit inputs (`prove`), tensor by tensor,
with the smallest example of a difference; prototypes too. Imports `inputs`, `modes` and `prototypes`."""
