-- Two roles for renewd's schema in this database. Run it as a superuser, before or after there are
-- tables. Running it again does no harm.
--
--   psql --set ON_ERROR_STOP=1 --single-transaction --file roles.sql "$ADMIN_URL"
--   psql "$ADMIN_URL" --command '\password renewd_owner' --command '\password renewd_worker'
--
-- renewd_owner owns the schema and its tables. Only `renewd migrate` connects as this role.
-- renewd_worker reads and writes rows, and does no more. Everything else connects as this role, with
-- RENEWD_DATABASE_MIGRATE=false.

DO $$ BEGIN CREATE ROLE renewd_owner LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DO $$ BEGIN CREATE ROLE renewd_worker LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;

DO $$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO renewd_owner, renewd_worker', current_database());
END $$;

-- The schema, and the tables of an installation that is older than these roles.
CREATE SCHEMA IF NOT EXISTS renewd;
ALTER SCHEMA renewd OWNER TO renewd_owner;
DO $$ DECLARE t regclass; BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'renewd'::regnamespace AND relkind IN ('r', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO renewd_owner', t);
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA renewd FROM PUBLIC, renewd_worker;
REVOKE ALL ON ALL TABLES IN SCHEMA renewd FROM PUBLIC, renewd_worker;
GRANT USAGE ON SCHEMA renewd TO renewd_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA renewd TO renewd_worker;

-- Also for tables of later migrations.
ALTER DEFAULT PRIVILEGES FOR ROLE renewd_owner IN SCHEMA renewd GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO renewd_worker;
