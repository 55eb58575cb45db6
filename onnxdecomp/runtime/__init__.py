"""Everything that touches onnxruntime: sessions, shapes, latency, comparison, metrics."""
