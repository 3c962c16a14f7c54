"""The version of svertka, which pyproject.toml reads from here; it does not depend on installed metadata."""

VERSION = "0.1.0"
