#!/usr/bin/env bash
# Runs every benchmark in turn and keeps what each printed under benchmarks/results/DATE-NAME.txt.
set -euo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # as the product runs, see cli.py
cd "$(dirname "$0")"
mkdir -p results
for script in transformer pipeline server loading large; do # large wants 10 GB of disk, 12 of memory, and minutes
    echo "== $script"
    "../$BIN/python" "$script.py" 2>/dev/null | tee "results/$(date -u +%F)-$script.txt" | grep -v '^{'
done
