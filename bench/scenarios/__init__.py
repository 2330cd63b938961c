"""One module for each of the measurements."""
