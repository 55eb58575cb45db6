"""Run the command line as ``python -m onnxdecomp``."""

from onnxdecomp.cli import main

if __name__ == "__main__":
    main()
