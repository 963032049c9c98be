#!/usr/bin/env bash
# Checks whether the given packages call code that is known as vulnerable, in the standard library
# of scripts/release-go too. Exit codes: 0 no, 3 yes, 1 the check failed. GOVULNDB says where the
# database is, file:///… for a copy without a network.
# Usage: scripts/vuln.sh PACKAGE...
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$scripts/tools/go.mod
GOTOOLCHAIN=$(<"$scripts/release-go")
export GOTOOLCHAIN
database=()
[[ -z ${GOVULNDB:-} ]] || database=(-db "$GOVULNDB")

status=0
GOFLAGS='' go tool -modfile="$tools" govulncheck "${database[@]}" -tags timetzdata "$@" || status=$?
case $status in
0 | 3) exit "$status" ;;
*)
	echo 'vuln: could not look. Without a network give GOVULNDB a copy of the database, unpacked:' >&2
	echo 'vuln: https://vuln.go.dev/vulndb.zip, and GOVULNDB=file:///where/it/is' >&2
	exit 1
	;;
esac
