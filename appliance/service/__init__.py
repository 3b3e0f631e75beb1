"""`vna serve` under a service manager: what they say to each other, and the units that name it."""
