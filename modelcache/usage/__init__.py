"""What is done with models: counted in each process, kept in the root, summed over processes, hosts and days.

`tally` counts, `store` keeps, `recorder` carries from one to the other off the path of a hit, `summary` says what it
comes to, `archive` sends it elsewhere and reads it there, `wanted` makes a manifest of it (docs/usage.md).
"""
