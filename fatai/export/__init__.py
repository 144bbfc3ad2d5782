"""Export trained models: model folders without pickle, and ONNX."""
