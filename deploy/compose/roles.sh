#!/usr/bin/env bash
# Gives the roles of deploy/postgres/roles.sql their passwords. The postgres image runs it once,
# while it makes the database, after that file.
set -euo pipefail
secrets=${SECRETS_FOLDER:-/run/secrets}

# On standard input, where no other process sees it.
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 \
	--username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<SQL
\set owner \`cat $secrets/postgres_owner_password\`
\set worker \`cat $secrets/postgres_worker_password\`
ALTER ROLE renewd_owner PASSWORD :'owner';
ALTER ROLE renewd_worker PASSWORD :'worker';
SQL
