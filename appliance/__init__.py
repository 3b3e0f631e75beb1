"""The machine around vnafs: configuration, control sockets, daemons and the `vna` command line."""
