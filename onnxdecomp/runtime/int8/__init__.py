"""Static INT8 by onnxruntime: which nodes, over which ranges, in which form, and whether it is any good."""
