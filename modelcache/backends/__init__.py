"""Backends: the storage that a tier or an event archive sits on. Their public names are in `modelcache.archive`."""
