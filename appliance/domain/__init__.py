"""Active Directory: this machine as a member of a domain, and accounts for the day when the domain is away."""
