"""The levels below a cache: one for each tier, with what it has, and how it is. `tiers` asks them in order."""
