#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each.
# Usage: scripts/fuzz.sh TIME-FOR-EACH
set -euo pipefail
time=$1

found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	printf '==> fuzz %s in %s for %s\n' "$target" "$(dirname "$file")" "$time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 2s "./$(dirname "$file")"
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' schema publishers consumers internal cmd | sed 's/func //')

# The laws of the formats are fuzzed. Finding nothing means that this script looks in the wrong place.
((found > 0)) || { echo 'no fuzz target found' >&2; exit 1; }
