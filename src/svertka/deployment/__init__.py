"""A trained network outside: as an ONNX file, as a folder to publish, as a page and an HTTP interface."""
