"""`python -m rahf` is the command `rahf`."""

import sys

from rahf.cli import main

sys.exit(main())
