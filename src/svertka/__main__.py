"""`python -m svertka`, which is also what torchrun starts."""

import sys

from svertka.cli.app import main

sys.exit(main())
