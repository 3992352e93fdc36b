"""``python -m toy_experiments``."""

import sys

from toy_experiments.cli import main

sys.exit(main())
