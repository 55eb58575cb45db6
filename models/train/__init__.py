"""Train the reference networks with torch on the CPU and write them as ONNX; needs the extra ``finetune``."""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError("Training needs torch: pip install torch==2.13.0, in its build for the CPU.")
