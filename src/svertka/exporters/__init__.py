"""Export a classifier: an ONNX file, or a folder for Hugging Face's hub."""
