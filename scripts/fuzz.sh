#!/usr/bin/env bash
# Runs every fuzz target of the module with a number of inputs each.
# Usage: scripts/fuzz.sh INPUTS-FOR-EACH
#
# The limit is a number, not a time: before Go 1.27 a fuzz run ended by the clock fails now and then
# with only "context deadline exceeded" (go.dev/issue/75804).
set -euo pipefail
inputs=$1

found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	printf '==> fuzz %s in %s with %s inputs\n' "$target" "$(dirname "$file")" "$inputs"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "${inputs}x" -fuzzminimizetime 100x "./$(dirname "$file")"
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' schema publishers consumers internal cmd | sed 's/func //')

# The module has fuzz targets. Finding none means that this script looks in the wrong place.
((found > 0)) || { echo 'no fuzz target found' >&2; exit 1; }
