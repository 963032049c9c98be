#!/usr/bin/env bash
# Checks format, go vet, staticcheck, and that everything builds, the benchmark's module too.
# Usage: scripts/lint.sh FOLDER-OF-TOOLS
set -euo pipefail
tools=$1

say() { printf '==> %s\n' "$*"; }

say 'format'
unformatted=$(gofmt -l .)
if [[ -n $unformatted ]]; then
	printf 'not formatted, run make fmt:\n%s\n' "$unformatted" >&2
	exit 1
fi
for module in . bench; do
	cd "$module"
	say "build $module"
	go build -o /dev/null ./...
	say "vet $module"
	go vet ./...
	say "staticcheck $module"
	"$tools/staticcheck" ./...
done
