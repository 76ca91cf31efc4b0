"""``python -m creditgrid.client.cli``: the same as the command ``creditgrid``."""

import sys

from creditgrid.client.cli.main import main

sys.exit(main())
