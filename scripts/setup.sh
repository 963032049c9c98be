#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: PostgreSQL's server programs, Node with npm, make, a C compiler for
# the race detector (all from Debian's packages), and staticcheck. Asks for nothing; needs root or sudo only if a package
# is missing.
# Usage: scripts/setup.sh FOLDER-FOR-TOOLS
set -euo pipefail
tools=$1
staticcheck_version=0.8.2

say() { printf '==> %s\n' "$*"; }
have() { command -v "$1" >/dev/null; }

packages=()
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || have postgres || packages+=(postgresql)
have node || packages+=(nodejs)
have npm || packages+=(npm)
have make || packages+=(make)
have gcc || packages+=(gcc libc6-dev)

if ((${#packages[@]})); then
	have apt-get || { echo "missing: ${packages[*]}: install them, there is no apt-get here" >&2; exit 1; }
	sudo=()
	((EUID == 0)) || sudo=(sudo)
	say "installing ${packages[*]}"
	# The tests start servers of their own: do not let the package start one on this machine.
	if [[ " ${packages[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
		"${sudo[@]}" mkdir -p /etc/postgresql-common
		"${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null <<<'create_main_cluster = false'
	fi
	"${sudo[@]}" apt-get update -qq
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		-o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "${packages[@]}" </dev/null >/dev/null
fi

is_pinned() { [[ -x $1 && $("$1" -version) == *"($staticcheck_version)"* ]]; }
mkdir -p "$tools"
if ! is_pinned "$tools/staticcheck"; then
	gobin=$(go env GOBIN)
	own=${gobin:-$(go env GOPATH)/bin}/staticcheck
	if is_pinned "$own"; then
		ln -sf "$own" "$tools/staticcheck"
	else
		say "building staticcheck $staticcheck_version"
		GOBIN=$tools go install "honnef.co/go/tools/cmd/staticcheck@v$staticcheck_version"
	fi
fi
