#!/usr/bin/env bash
# Makes what docker-compose.yml does not start without: a password for each user, a certificate for
# each server, and .env, which says where they are. None of these files is in git. Existing files
# stay, except certificates that end within 30 days. With --renew all certificates are made again.
# After that restart the containers: docker compose up --detach --force-recreate
#
# Needs openssl. Usage: deploy/compose/setup.sh [--renew]
#
# Only its owner can enter the folder. The files in it are readable by every user, since the user
# inside a container differs from the user who runs this script, and must read the mounted files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=deploy/compose/secrets
days=825
month=$((30 * 24 * 60 * 60))
umask 022

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
command -v openssl >/dev/null || fail 'openssl is not installed'
[[ $# == 0 || $# == 1 && $1 == --renew ]] || fail 'usage: deploy/compose/setup.sh [--renew]'

mkdir -p "$folder"
chmod 700 "$folder"

# The letter in front keeps the NATS server, which reads a password as a setting, from taking it
# for a number.
for name in nats_renewd nats_operator nats_demo postgres postgres_owner postgres_worker; do
	file=$folder/${name}_password
	[[ -s $file ]] || printf 'p%s\n' "$(openssl rand -hex 24)" >"$file"
done
for name in http_token client_secret; do
	[[ -s $folder/$name ]] || openssl rand -hex 24 >"$folder/$name"
done
tls='sslmode=verify-full&sslrootcert=/run/secrets/ca'
for role in owner worker; do
	printf 'postgres://renewd_%s:%s@postgres:5432/renewd?%s\n' \
		"$role" "$(<"$folder/postgres_${role}_password")" "$tls" >"$folder/database_url_$role"
done

# fresh FILE succeeds if the certificate exists and does not end soon.
fresh() { [[ -s $1 ]] && openssl x509 -in "$1" -noout -checkend "$month" >/dev/null; }

# The key of the authority is dropped at once, so no further certificate can be signed with it.
if [[ ${1:-} == --renew ]] || ! fresh "$folder/ca"; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	quietly() { openssl "$@" 2>"$work/said" || fail "$(<"$work/said")"; }
	new() { quietly req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -batch "$@"; }
	cat >"$work/ca.cnf" <<-'END'
		[req]
		distinguished_name = name
		x509_extensions = ca
		[name]
		[ca]
		basicConstraints = critical, CA:TRUE, pathlen:0
		keyUsage = critical, keyCertSign
		subjectKeyIdentifier = hash
	END
	new -x509 -config "$work/ca.cnf" -days "$days" -subj '/CN=renewd compose' \
		-keyout "$work/ca.key" -out "$work/ca"
	for server in nats postgres renewd; do
		new -subj "/CN=$server" -keyout "$work/${server}_key" -out "$work/$server.csr"
		printf '%s\n' "subjectAltName = DNS:$server, DNS:localhost, IP:127.0.0.1" \
			'extendedKeyUsage = serverAuth' >"$work/$server.ext"
		quietly x509 -req -in "$work/$server.csr" -CA "$work/ca" -CAkey "$work/ca.key" \
			-CAserial "$work/serial" -CAcreateserial \
			-days "$days" -extfile "$work/$server.ext" -out "$work/${server}_cert"
	done
	chmod 644 "$work"/*_key
	mv "$work"/{nats,postgres,renewd}_{key,cert} "$folder/"
	mv "$work/ca" "$folder/ca" # last, since its presence says that all are there
	printf 'new certificates, good for %s days\n' "$days"
fi

# Without this line docker-compose.yml refuses to start, and names this script.
line="SECRETS=./$folder"
touch .env
grep -qxF "$line" .env || printf '%s\n' "$line" >>.env
printf '%s has all that docker compose needs\n' "$folder"
