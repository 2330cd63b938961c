#!/bin/bash
# Prolog of slurmd (Prolog= in slurm.conf): models are on a node before a job begins there.
# A prolog that fails drains its node: so it is bounded, and never fails. A job that needs the models checks for itself.
set -u

manifest="${MODELCACHE_MANIFEST:-/etc/modelcache/models.toml}"
export MODELCACHE_DIR="${MODELCACHE_DIR:-/var/cache/modelcache/models}"

# Below PrologEpilogTimeout. SIGTERM leaves what had arrived to be resumed.
timeout 240 setpriv --reuid=modelcache --regid=modelcache --init-groups \
  modelcache prewarm --locked --quiet "$manifest" || logger --tag modelcache "prewarm: exit code $?" || true
exit 0
