#!/usr/bin/env bash
# Checks format, go vet and staticcheck, and that everything builds, the benchmark's module too, or the given modules only.
# Usage: scripts/lint.sh FOLDER-OF-TOOLS [FOLDER-OF-A-MODULE...]
set -euo pipefail
tools=$1
modules=("${@:2}")
((${#modules[@]})) || modules=(. bench)

say() { printf '==> %s\n' "$*"; }

say 'format'
unformatted=$(gofmt -l .)
if [[ -n $unformatted ]]; then
	printf 'not formatted, run make fmt:\n%s\n' "$unformatted" >&2
	exit 1
fi
for module in "${modules[@]}"; do
	say "build $module"
	go -C "$module" build -o /dev/null ./...
	say "vet $module"
	go -C "$module" vet ./...
	say "staticcheck $module"
	(cd "$module" && "$tools/staticcheck" ./...)
done
