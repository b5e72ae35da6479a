"""``python -m kongps``: the same as the ``kongps`` command."""

import sys

from kongps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
