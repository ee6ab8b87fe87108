-- +goose Up

-- The order in which items become ready. Not cached per session: the order within a destination would suffer.
create sequence delivery_seq;

create table delivery_destinations (
    no              integer generated always as identity unique, -- the low half of a lane
    version         bigint not null default 1,                   -- grows with every change
    config_version  bigint not null default 1,                   -- the version at the last change of the config; what it is sealed to
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    deleted_at      timestamptz,                                 -- the row stays, for history; config and sealed do not
    paused_at       timestamptz,                                 -- held by hand; that changes no version
    id              uuid not null,
    is_default      boolean not null default false,
    disabled        boolean not null default false,
    disabled_by_service boolean not null default false,
    organization_id text not null,
    type            text not null,
    label           text not null,
    description     text not null default '',
    icon            text not null default '',
    instructions    text not null default '',
    disabled_reason text not null default '',
    tags            jsonb,
    config          jsonb not null,                              -- secrets redacted
    sealed          bytea,                                       -- the whole config, sealed, if it has secrets
    limits          jsonb,
    retry           jsonb,
    breaker         jsonb,
    fallback        smallint not null default 0,                 -- of a default: 0 primary, else its place among those that step in
    draining_at     timestamptz,                                 -- takes nothing new, and is deleted once nothing waits for it
    default_topics  jsonb,                                       -- of a default: null for all topics
    subscription    jsonb,                                       -- null: none
    primary key (organization_id, id)
);
create index delivery_destinations_defaults on delivery_destinations (organization_id, no)
    where is_default and deleted_at is null;

-- Whose a foreign id is, for the security event: of an expression, so that no other statement is tempted. Deliveries have none
-- such, which would cost each of them.
create index delivery_destinations_id on delivery_destinations ((cast(id as text)));

create index delivery_destinations_draining on delivery_destinations (no) where draining_at is not null and deleted_at is null;

-- Attempts across organizations, and beyond an actor's rights. Append-only.
create table delivery_security_events (
    at              timestamptz not null,
    id              uuid not null,
    subject_id      uuid,
    organization_id text not null,             -- whose it is
    kind            text not null,
    actor           text not null,
    action          text not null,
    from_organization text not null,           -- for whom it was named
    subject         text not null,
    primary key (organization_id, id)
);
create index delivery_security_events_at on delivery_security_events (at);

-- The scheduled connection tests of destinations: a row for each that is tested.
create table delivery_checks (
    destination_no  integer primary key,
    organization_id text not null,
    due_at          timestamptz not null,      -- the next one; until when a process has it, while it is at it
    checked_at      timestamptz,
    ok              boolean,                   -- what the last one found
    report          jsonb
) with (fillfactor = 50);
create index delivery_checks_due on delivery_checks (due_at);

-- A row only for destinations that are limited, at least for a time: its lock puts the claims for them in order.
create table delivery_gates (
    destination_no  integer primary key,
    organization_id text not null,
    tokens          double precision, -- of the rate, at tokens_at; null for a full bucket
    tokens_at       timestamptz
) with (fillfactor = 50);

-- Likewise for organizations: of those that are paused, and of all where what they may have in flight is limited. The
-- row '' stands for all of them.
create table delivery_organizations (
    organization_id text primary key,
    paused_at       timestamptz
) with (fillfactor = 50);
create index delivery_organizations_paused on delivery_organizations (organization_id) where paused_at is not null;

-- Written only at failures, and at the successes that end them.
create table delivery_health (
    destination_no  integer primary key,
    organization_id text not null,
    failures        integer not null default 0,  -- in a row
    breaker         smallint not null default 0, -- 0 closed, 1 open, 2 half-open
    probed          smallint not null default 0, -- successes in a row since it was half-open
    failing_since   timestamptz,
    last_failure_at timestamptz,
    breaker_at      timestamptz,                 -- of its last change
    probe_at        timestamptz,                 -- when an open breaker lets probes through; null: never by itself
    catch_up_to        bigint                       -- ready items up to this number were held; they go out at a bounded rate
) with (fillfactor = 50);

-- What attempts came to, by destination and minute: added up in each process, and written now and then. The attempts are
-- the truth.
create table delivery_minutes (
    minute          timestamptz not null,
    destination_no  integer not null,
    delivered       integer not null,
    failed          integer not null,            -- attempts
    dead            integer not null,            -- items
    took            real not null,               -- seconds, all attempts together
    t0              integer not null,            -- attempts that took up to 5 ms
    t1              integer not null,            -- 10 ms
    t2              integer not null,            -- 25 ms
    t3              integer not null,            -- 50 ms
    t4              integer not null,            -- 100 ms
    t5              integer not null,            -- 250 ms
    t6              integer not null,            -- 500 ms
    t7              integer not null,            -- 1 s
    t8              integer not null,            -- 2.5 s
    t9              integer not null,            -- 5 s
    t10             integer not null,            -- 10 s
    t11             integer not null,            -- 30 s
    t12             integer not null,            -- 1 min
    t13             integer not null,            -- more
    organization_id text not null,
    primary key (organization_id, destination_no, minute)
) with (fillfactor = 50);
create index delivery_minutes_minute on delivery_minutes (minute);

-- What is removed from delivery_minutes, added up by destination.
create table delivery_usage (
    destination_no  integer primary key,
    organization_id text not null,
    delivered       bigint not null,
    dead            bigint not null,
    attempts        bigint not null,
    failed          bigint not null,
    last_at         timestamptz                -- the minute of the last attempt
);

create table delivery_payloads (
    created_at      timestamptz not null,
    size            bigint not null,
    id              uuid not null,
    complete        boolean not null default false,
    organization_id text not null,
    name            text not null default '',
    content_type    text not null,
    sha256          bytea,
    store_key       text,             -- in a store outside of the database; null: in delivery_payload_chunks
    primary key (organization_id, id)
);
create index delivery_payloads_created on delivery_payloads (created_at);
create index delivery_payloads_store on delivery_payloads (store_key) where store_key is not null;

-- One row: what this database's objects in a store are told by.
create table delivery_installation (
    id              text primary key
);
insert into delivery_installation (id) values (replace(gen_random_uuid()::text, '-', ''));

create table delivery_payload_chunks (
    payload_id      uuid not null,
    i               integer not null,
    organization_id text not null,
    data            bytea not null,
    primary key (organization_id, payload_id, i)
);
alter table delivery_payload_chunks alter column data set storage external;

create table delivery_deliveries (
    created_at      timestamptz not null,
    deadline        timestamptz,
    payload_size    bigint not null,
    id              uuid not null,
    payload_id      uuid,             -- of delivery_payloads, where the payload is not in the row
    replay_of       uuid,
    fallback        boolean,          -- went to the fallback among the defaults; null: it did not
    priority        smallint not null default 0,
    organization_id text not null,
    topic           text,
    idempotency_key text,
    correlation_id  text,
    trace_parent    text,
    actor           text,
    tags            jsonb,
    metadata        jsonb,
    options         jsonb,            -- retry policy, overrides per destination, callback
    payload_name    text,
    payload_type    text not null,
    payload_source  text,             -- of a payload that stays where it is
    payload_ref     text,
    payload_sha256  bytea,
    payload         bytea,
    primary key (organization_id, id)
);
create index delivery_deliveries_payload on delivery_deliveries (payload_id) where payload_id is not null;

create table delivery_idempotency (
    expires_at      timestamptz not null,
    delivery_id     uuid not null,
    organization_id text not null,
    key             text not null,
    fingerprint     bytea not null,
    primary key (organization_id, key)
);
create index delivery_idempotency_expires on delivery_idempotency (expires_at);

-- One row per pending item, and none for an ended one. Hot and narrow; no foreign keys.
create table delivery_queue (
    lane            bigint not null,  -- (10 - priority) << 32 | destinations.no: higher priorities sort first
    seq             bigint not null default nextval('delivery_seq'),
    lease           bigint not null default 0, -- of delivery_leases; 0: none. In no index, or each lease would write to them all
    run_at          timestamptz not null, -- ready: since when; scheduled: from when
    deadline        timestamptz,
    progress        bigint,           -- bytes that the other side has, where an attempt takes long
    delivery_id     uuid not null,
    fence           integer not null default 0, -- grows as each lease ends: a stale worker's is refused
    n               smallint not null,
    state           smallint not null default 0, -- 0 ready or leased, 2 scheduled
    attempt         smallint not null default 0, -- attempts charged
    lost            smallint not null default 0, -- leases lost
    gated           smallint not null default 0, -- claimed through a gate: 1 limited; 2 in strict order, which a retry keeps
    cancel          smallint not null default 0, -- the reason, where it was asked for while leased
    organization_id text not null,
    primary key (organization_id, delivery_id, n)
) with (
    fillfactor = 50, -- room for the row that a lease writes: then no index is written with it
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
create index delivery_queue_ready on delivery_queue (lane, seq) where state = 0;
create index delivery_queue_due on delivery_queue (run_at) where state = 2;
create index delivery_queue_cancel on delivery_queue (organization_id, delivery_id, n) where cancel <> 0;
create index delivery_queue_deadline on delivery_queue (deadline) where deadline is not null;
create index delivery_queue_gated on delivery_queue (organization_id, (lane & 4294967295)) where gated <> 0; -- by destination

-- What a process claimed at once, and must prolong. It is gone with the last of its items.
create table delivery_leases (
    id              bigint primary key,
    until           timestamptz not null,
    spans           text not null     -- where its items are: lane, first and last number of each lane
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
create index delivery_leases_until on delivery_leases (until);

-- What became of items. Append-only; each item gets a row whose state is an end, and another each time that it ends after
-- it was retried by hand: the last one counts.
create table delivery_attempts (
    ended_at        timestamptz not null,
    next_at         timestamptz,
    delivery_id     uuid not null,
    destination_id  uuid not null,
    fence           integer not null,
    status_code     integer,
    took            real,              -- seconds; null if no attempt was begun
    n               smallint not null,
    attempt         smallint not null, -- its number; 0 if it was none, or is not charged
    state           smallint not null, -- that the item then had
    reason          smallint not null,
    category        smallint,          -- of the failure; null if there was none
    organization_id text not null,
    code            text,
    error           text,
    reference       jsonb,
    detail          jsonb,             -- exchange, parts, notes
    primary key (organization_id, delivery_id, n, fence)
);

-- One row per dead letter, for as long as it is one: made as the item ends, removed as it is retried or purged. Narrow, as
-- the queue is; the record of the death is in delivery_attempts and stays.
create table delivery_dead_letters (
    lane            bigint not null,
    died_at         timestamptz not null,
    deadline        timestamptz,
    delivery_id     uuid not null,
    destination_id  uuid not null,
    fence           integer not null,  -- of its end
    n               smallint not null,
    reason          smallint not null,
    organization_id text not null,
    primary key (organization_id, delivery_id, n)
);
create index delivery_dead_letters_destination on delivery_dead_letters (organization_id, destination_id, delivery_id, n);

-- What was written at destinations that keep it for a time only: until it is removed, and then the record of that.
create table delivery_written (
    written_at      timestamptz not null,
    removed_at      timestamptz,          -- when nothing is to be done any more
    tried_at        timestamptz,          -- where it could not be removed
    delivery_id     uuid not null,
    destination_no  integer not null,
    n               smallint not null,
    removal         smallint not null default 0,
    organization_id text not null,
    problem         text,                -- why it could not be removed
    reference       jsonb not null,
    primary key (organization_id, delivery_id, n)
);
create index delivery_written_due on delivery_written (destination_no, written_at, delivery_id, n) where removed_at is null;

create table delivery_checkpoints (
    delivery_id     uuid not null,
    n               smallint not null,
    organization_id text not null,
    value           jsonb not null,
    primary key (organization_id, delivery_id, n)
);

-- Maintenance jobs: whoever leases the row runs the job.
create table delivery_jobs (
    name         text primary key,
    leased_until timestamptz not null,
    ran_at       timestamptz
);

-- The processes that attempt items, so that it can be told that none does.
create table delivery_workers (
    seen_at      timestamptz not null,
    id           uuid primary key,
    types        jsonb not null
);

-- +goose Down
drop table delivery_usage, delivery_checks, delivery_security_events, delivery_installation, delivery_written, delivery_workers, delivery_jobs, delivery_checkpoints, delivery_dead_letters, delivery_attempts, delivery_leases, delivery_queue, delivery_idempotency,
    delivery_deliveries, delivery_payload_chunks, delivery_payloads, delivery_minutes, delivery_health, delivery_organizations, delivery_gates,
    delivery_destinations;
drop sequence delivery_seq;
