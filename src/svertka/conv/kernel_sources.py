"""Hash of the sources of the compiled kernels, which tells whether a build is older than the sources beside it.

CMake runs this file: `python -P kernel_sources.py FOLDER OUTPUT` writes a C++ file that defines the hash of the sources
in FOLDER. It imports nothing of svertka, which is not installed yet.
"""

import hashlib
import sys
from pathlib import Path


def hash_kernel_sources(folder: Path) -> str:
    """Return the hash of the names and contents of the C++ files and of CMakeLists.txt in `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".cpp", ".h") or path.name == "CMakeLists.txt":
            content = path.read_bytes()
            digest.update(b"%s\0%d\0" % (path.relative_to(folder).as_posix().encode(), len(content)))
            digest.update(content)
    return digest.hexdigest()


def main(folder: str, output: str) -> None:
    """Write a C++ file that defines `svertka::source_hash`."""
    value = hash_kernel_sources(Path(folder))
    text = (
        f'namespace svertka {{\nextern const char* const source_hash;\nconst char* const source_hash = "{value}";\n}}\n'
    )
    Path(output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
