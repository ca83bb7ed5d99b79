"""`python -m metalearn`."""

import sys

from metalearn.commands.main import main

sys.exit(main())
