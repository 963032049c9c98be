#!/usr/bin/env bash
# Checks format, go vet, staticcheck and errcheck, and that everything builds, the benchmark's
# module too, or the given modules only. The versions of the tools are in scripts/tools/go.mod.
# Usage: scripts/lint.sh [FOLDER-OF-A-MODULE...]
set -euo pipefail
modules=("$@")
((${#modules[@]})) || modules=(. bench)
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '==> %s\n' "$*"; }
tool() { go tool -modfile="$scripts/tools/go.mod" "$@"; }

for module in "${modules[@]}"; do
	[[ -f $module/go.mod ]] || { echo "lint: $module has no go.mod" >&2; exit 1; }
done

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
	(cd "$module" && tool staticcheck ./...)
	say "errcheck $module"
	(cd "$module" && tool errcheck -ignoretests -exclude "$scripts/errcheck.txt" ./...)
done
