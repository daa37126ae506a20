"""Teachers: models, their export to ONNX, and their sessions."""
