"""`python -m appliance` is `vna`: how the supervisor starts daemons with the interpreter it runs on itself."""

from __future__ import annotations

import sys

from appliance.cli import daemons

if sys.argv[1:2] and sys.argv[1] in daemons.NAMES:
    sys.exit(daemons.main(sys.argv[1:]))

from appliance.cli.main import main

sys.exit(main())
