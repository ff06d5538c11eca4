"""The benchmark of timeouts: how long NATs remember, what survives that, and what keepalives cost."""
