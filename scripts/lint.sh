#!/usr/bin/env bash
# Checks format, go vet, staticcheck, and that everything builds.
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
say 'build'
go build ./...
say 'vet'
go vet ./...
say 'staticcheck'
"$tools/staticcheck" ./...
