"""Train the numbers of an ONNX graph, which stays as it is, on torch (extra `finetune`)."""
