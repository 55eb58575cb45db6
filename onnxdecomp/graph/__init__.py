"""Everything that touches ONNX graphs: reading, finding layers, folding, emitting, rewriting, writing."""
