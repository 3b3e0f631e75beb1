"""`vna`: the command line. It reads arguments and the environment, asks daemons, and shows what they say."""

from appliance.cli.main import main

__all__ = ["main"]
