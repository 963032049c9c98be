#!/usr/bin/env bash
# Runs all tests with the race detector. The tests of the built binary come last and alone: they want both cores.
# Usage: scripts/test.sh [more flags for go test]
set -euo pipefail

e2e=$(go list ./internal/e2e)
mapfile -t others < <(go list ./... | grep -vxF "$e2e")

echo '==> tests'
go test -race -short -vet=off -timeout 8m "$@" "${others[@]}"
echo '==> 20,000 grants due at once, without the race detector'
go test -vet=off -timeout 8m -run '^TestHerd$' ./internal/systemtest
echo '==> whole-system tests'
go test -race -vet=off -timeout 8m "$@" "$e2e"
