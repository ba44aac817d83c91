"""`fraud demo`: the whole system on this machine for two minutes, and an account of what it did."""
