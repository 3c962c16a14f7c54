"""A process of work in the background, which ends with the studio, however that ends: its standard input is a pipe.

`python -m svertka.studio.job_process MODULE ARGUMENT...` runs MODULE as `python -m` does.
"""

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """Send this process SIGTERM as soon as its standard input is closed, which a killed parent does, too."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(module: str, *arguments: str) -> None:
    """Run `module` with `arguments` until it ends or the parent does."""
    end_with_parent()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
