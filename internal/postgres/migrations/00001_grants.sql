-- +goose Up
CREATE TABLE renewd.grants (
    provider     text NOT NULL,
    user_id      text NOT NULL,
    revision     bigint NOT NULL,
    version      bigint NOT NULL,
    status       text NOT NULL,
    fingerprint  text NOT NULL,             -- of the refresh token; tells tokens apart, reveals none
    tokens       bytea NOT NULL,            -- the pair, sealed
    expires_at   timestamptz,
    next_due_at  timestamptz,
    login_at     timestamptz,
    refreshed_at timestamptz,
    synced_at    timestamptz,
    failed_at    timestamptz,
    active_at    timestamptz,
    attempts     integer NOT NULL,
    outages      integer NOT NULL,
    last_error   text NOT NULL,
    claim_nonce  text,
    claim_until  timestamptz,
    claim        json,                     -- the rest of the claim
    profile      json,
    state        json NOT NULL,            -- the rest of the record
    PRIMARY KEY (provider, user_id)
) WITH (fillfactor = 75);                   -- no column but the key is indexed: updates stay on their page (HOT)

COMMENT ON TABLE renewd.grants IS 'One user at one provider. Written by renewd only; tokens are encrypted.';

-- +goose Down
DROP TABLE renewd.grants;
