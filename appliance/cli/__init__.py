"""`vna`: the command line. It reads arguments and the environment, asks daemons, and shows what they say.

Nothing is loaded here: `appliance.cli.main` loads every command, which a daemon that is started has no time for.
"""
