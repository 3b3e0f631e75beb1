"""`vna` that believes that the machine has booted: what it does after a loss of power is then what it does here.

python -m tests.cuts.rebooted mount|tierd
"""

from __future__ import annotations

import sys

from appliance import system
from appliance.cli.main import main

if __name__ == "__main__":
    system.boot_id = lambda: "after the cut"
    sys.exit(main())
