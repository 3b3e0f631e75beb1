"""`python -m appliance` is `vna`: how the supervisor starts daemons with the interpreter it runs on itself."""

from __future__ import annotations

import sys

from appliance.cli import main

sys.exit(main())
