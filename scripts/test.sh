#!/usr/bin/env bash
# Runs all tests with the race detector. The tests of the built binary come last and alone, since
# they want both cores.
# Usage: scripts/test.sh [more flags for go test]
set -euo pipefail

# Debian 12 ships Node 18, which has WebCrypto but no global name for it yet.
if [[ $(node --version) == v18.* ]]; then
	export NODE_OPTIONS=--experimental-global-webcrypto
fi

e2e=$(go list ./internal/e2e)
chaos=$(go list ./cmd/chaos)
mapfile -t long < <(go list ./internal/systemtest ./cmd/renewd) # they begin first, beside the others
mapfile -t others < <(go list ./... | grep -vxF -e "$e2e" -e "$chaos" -e "${long[0]}" -e "${long[1]}")

echo '==> tests'
go test -race -short -vet=off -timeout 15m -parallel 4 "$@" "${long[@]}" "${others[@]}" # what runs side by side waits for most of its time
echo '==> 20,000 grants due at once, and 2,500 bad ones beside others, without the race detector'
go test -vet=off -timeout 15m -run '^(TestHerd|TestTwoThousandBadOnesStopNobody)$' ./internal/systemtest
echo '==> each fault once, on processes of their own'
go test -vet=off -timeout 15m -parallel 8 "$@" "$chaos"
echo '==> whole-system tests'
go test -race -vet=off -timeout 15m "$@" "$e2e"
