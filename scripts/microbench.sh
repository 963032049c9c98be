#!/usr/bin/env bash
# Runs the packages' own benchmarks six times each, and has benchstat sum them up, or compare them
# with an earlier run. The run is kept in .cache/microbench.txt, to be the next one's base.
# Usage: scripts/microbench.sh 'PACKAGE...' [FILE-OF-A-RUN-BEFORE]
set -euo pipefail
read -ra packages <<<"$1"
base=${2:-}
[[ -z $base || -s $base ]] || { echo "microbench: there is no $base" >&2; exit 1; }

run=.cache/microbench.txt
mkdir -p .cache
[[ $base != "$run" ]] || { cp "$run" "$run.before" && base=$run.before; }
go test -run '^$' -bench . -benchmem -count 6 "${packages[@]}" >"$run"
go tool -modfile=scripts/tools/go.mod benchstat ${base:+"$base"} "$run"
