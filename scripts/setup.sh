#!/usr/bin/env bash
# Installs what the tests need and the machine lacks, all from Debian's packages: PostgreSQL's,
# MariaDB's and Redis's server programs, Node with npm, Python and PHP for the programs of
# docs/examples, the programs that wrap a keyring (age, gpg, openssl, systemd-creds), make, and a C
# compiler for the race detector. Asks for nothing; needs root or sudo only if a package is missing.
# What is written in Go, go builds by itself (scripts/tools).
# Usage: scripts/setup.sh
set -euo pipefail

say() { printf '==> %s\n' "$*"; }
have() { command -v "$1" >/dev/null; }

packages=()
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || have postgres || packages+=(postgresql)
have mariadbd || [[ -x /usr/sbin/mariadbd ]] || packages+=(mariadb-server-core)
have redis-server || packages+=(redis-server)
have node || packages+=(nodejs)
have npm || packages+=(npm)
have python3 || packages+=(python3)
have php && php -m | grep -qix curl || packages+=(php-cli php-curl)
have php && php -m | grep -qix pdo_mysql || packages+=(php-mysql)
have php && php -m | grep -qix pdo_pgsql || packages+=(php-pgsql)
have my_print_defaults || packages+=(mariadb-client-core)
have make || packages+=(make)
have openssl || packages+=(openssl)
have age || packages+=(age)
have gpg && have gpgconf || packages+=(gnupg)
have systemd-creds || packages+=(systemd)
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
	if [[ " ${packages[*]} " == *" redis-server "* && ! -e /usr/sbin/policy-rc.d ]]; then
		"${sudo[@]}" tee /usr/sbin/policy-rc.d >/dev/null <<<$'#!/bin/sh\nexit 101'
		"${sudo[@]}" chmod +x /usr/sbin/policy-rc.d
		trap '"${sudo[@]}" rm /usr/sbin/policy-rc.d' EXIT
	fi
	"${sudo[@]}" apt-get update -qq
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		-o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "${packages[@]}" </dev/null >/dev/null
fi
