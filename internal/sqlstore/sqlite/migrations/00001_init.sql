-- +goose Up

-- Times are microseconds since 1970, in UTC; booleans 0 and 1.

-- The order in which items become ready, and the one row that every write transaction touches first: SQLite's single
-- writer is then waited for at its start, where waiting is possible.
create table delivery_sequence (value integer not null);
insert into delivery_sequence values (0);

create table delivery_destinations (
    no              integer primary key autoincrement,           -- the low half of a lane
    version         integer not null default 1,                   -- grows with every change
    config_version  integer not null default 1,                   -- the version at the last change of the config; what it is sealed to
    created_at      integer not null,
    updated_at      integer not null,
    deleted_at      integer,                                 -- the row stays, for history; config and sealed do not
    paused_at       integer,                                 -- held by hand; that changes no version
    id              text not null,
    is_default      integer not null default 0,
    disabled        integer not null default 0,
    disabled_by_service integer not null default 0,
    organization_id text not null,
    type            text not null,
    label           text not null,
    description     text not null default '',
    icon            text not null default '',
    instructions    text not null default '',
    disabled_reason text not null default '',
    tags            text,
    config          text not null,                              -- secrets redacted
    sealed          blob,                                       -- the whole config, sealed, if it has secrets
    limits          text,
    retry           text,
    breaker         text,
    fallback        integer not null default 0,              -- of a default: 0 primary, else its place among those that step in
    draining_at     integer,                                 -- takes nothing new, and is deleted once nothing waits for it
    default_topics  text,                                    -- of a default: null for all topics
    subscription    text,                                    -- null: none
    unique (organization_id, id)
);
create index delivery_destinations_defaults on delivery_destinations (organization_id, no)
    where is_default and deleted_at is null;

-- Whose a foreign id is, for the security event: of an expression, so that no other statement is tempted. Deliveries have none
-- such, which would cost each of them.
create index delivery_destinations_id on delivery_destinations ((cast(id as text)));

create index delivery_destinations_draining on delivery_destinations (no) where draining_at is not null and deleted_at is null;

-- Attempts across organizations, and beyond an actor's rights. Append-only.
create table delivery_security_events (
    at              integer not null,
    id              text not null,
    subject_id      text,
    organization_id text not null,             -- whose it is
    kind            text not null,
    actor           text not null,
    action          text not null,
    from_organization text not null,           -- for whom it was named
    subject         text not null,
    primary key (organization_id, id)
) without rowid;
create index delivery_security_events_at on delivery_security_events (at);

-- The scheduled connection tests of destinations: a row for each that is tested.
create table delivery_checks (
    destination_no  integer primary key,
    organization_id text not null,
    due_at          integer not null,          -- the next one; until when a process has it, while it is at it
    checked_at      integer,
    ok              integer,                   -- what the last one found
    report          text
);
create index delivery_checks_due on delivery_checks (due_at);

-- A row only for destinations that are limited, at least for a time: its lock puts the claims for them in order.
create table delivery_gates (
    destination_no  integer primary key,
    organization_id text not null,
    tokens          real,                        -- of the rate, at tokens_at; null for a full bucket
    tokens_at       integer
);

-- Likewise for organizations: of those that are paused, and of all where what they may have in flight is limited. The
-- row '' stands for all of them.
create table delivery_organizations (
    organization_id text primary key,
    paused_at       integer
) without rowid;

-- Written only at failures, and at the successes that end them.
create table delivery_health (
    destination_no  integer primary key,
    organization_id text not null,
    failures        integer not null default 0,  -- in a row
    breaker         integer not null default 0,  -- 0 closed, 1 open, 2 half-open
    probed          integer not null default 0,  -- successes in a row since it was half-open
    failing_since   integer,
    last_failure_at integer,
    breaker_at      integer,                     -- of its last change
    probe_at        integer,                     -- when an open breaker lets probes through; null: never by itself
    catch_up_to        integer                      -- ready items up to this number were held; they go out at a bounded rate
);

-- What attempts came to, by destination and minute: added up in each process, and written now and then. The attempts are
-- the truth.
create table delivery_minutes (
    minute          integer not null,
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
) without rowid;
create index delivery_minutes_minute on delivery_minutes (minute);

-- What is removed from delivery_minutes, added up by destination.
create table delivery_usage (
    destination_no  integer primary key,
    organization_id text not null,
    delivered       integer not null,
    dead            integer not null,
    attempts        integer not null,
    failed          integer not null,
    last_at         integer                    -- the minute of the last attempt
);

create table delivery_payloads (
    created_at      integer not null,
    size            integer not null,
    id              text not null,
    complete        integer not null default 0,
    organization_id text not null,
    name            text not null default '',
    content_type    text not null,
    sha256          blob,
    store_key       text,             -- in a store outside of the database; null: in delivery_payload_chunks
    primary key (organization_id, id)
);
create index delivery_payloads_created on delivery_payloads (created_at);
create index delivery_payloads_store on delivery_payloads (store_key) where store_key is not null;

-- One row: what this database's objects in a store are told by.
create table delivery_installation (
    id              text primary key
);
insert into delivery_installation (id) values (lower(hex(randomblob(16))));

create table delivery_payload_chunks (
    payload_id      text not null,
    i               integer not null,
    organization_id text not null,
    data            blob not null,
    primary key (organization_id, payload_id, i)
);

create table delivery_deliveries (
    created_at      integer not null,
    deadline        integer,
    payload_size    integer not null,
    id              text not null,
    payload_id      text,             -- of delivery_payloads, where the payload is not in the row
    replay_of       text,
    fallback        integer,          -- went to the fallback among the defaults; null: it did not
    priority        integer not null default 0,
    organization_id text not null,
    topic           text,
    idempotency_key text,
    correlation_id  text,
    trace_parent    text,
    actor           text,
    tags            text,
    metadata        text,
    options         text,            -- retry policy, overrides per destination, callback
    payload_name    text,
    payload_type    text not null,
    payload_source  text,             -- of a payload that stays where it is
    payload_ref     text,
    payload_sha256  blob,
    payload         blob,
    primary key (organization_id, id)
);
create index delivery_deliveries_payload on delivery_deliveries (payload_id) where payload_id is not null;

create table delivery_idempotency (
    expires_at      integer not null,
    delivery_id     text not null,
    organization_id text not null,
    key             text not null,
    fingerprint     blob not null,
    primary key (organization_id, key)
) without rowid;
create index delivery_idempotency_expires on delivery_idempotency (expires_at);

-- One row per pending item, and none for an ended one. Hot and narrow; no foreign keys.
create table delivery_queue (
    lane            integer not null,  -- (10 - priority) << 32 | destinations.no: higher priorities sort first
    seq             integer not null,
    lease           integer not null default 0, -- of delivery_leases; 0: none
    run_at          integer not null, -- ready: since when; scheduled: from when
    deadline        integer,
    progress        integer,          -- bytes that the other side has, where an attempt takes long
    delivery_id     text not null,
    fence           integer not null default 0, -- grows as each lease ends: a stale worker's is refused
    n               integer not null,
    state           integer not null default 0, -- 0 ready or leased, 2 scheduled
    attempt         integer not null default 0, -- attempts charged
    lost            integer not null default 0, -- leases lost
    gated           integer not null default 0, -- claimed through a gate: 1 limited; 2 in strict order, which a retry keeps
    cancel          integer not null default 0, -- the reason, where it was asked for while leased
    organization_id text not null,
    primary key (organization_id, delivery_id, n)
) without rowid;
create index delivery_queue_ready on delivery_queue (lane, seq) where state = 0;
create index delivery_queue_due on delivery_queue (run_at) where state = 2;
create index delivery_queue_cancel on delivery_queue (organization_id, delivery_id, n) where cancel <> 0;
create index delivery_queue_deadline on delivery_queue (deadline) where deadline is not null;
create index delivery_queue_gated on delivery_queue (organization_id, (lane & 4294967295)) where gated <> 0; -- by destination

-- What a process claimed at once, and must prolong. It is gone with the last of its items.
create table delivery_leases (
    id              integer primary key,
    until           integer not null,
    spans           text not null     -- where its items are: lane, first and last number of each lane
);
create index delivery_leases_until on delivery_leases (until);

-- What became of items. Append-only; each item gets a row whose state is an end, and another each time that it ends after
-- it was retried by hand: the last one counts.
create table delivery_attempts (
    ended_at        integer not null,
    next_at         integer,
    delivery_id     text not null,
    destination_id  text not null,
    fence           integer not null,
    status_code     integer,
    took            real,              -- seconds; null if no attempt was begun
    n               integer not null,
    attempt         integer not null, -- its number; 0 if it was none, or is not charged
    state           integer not null, -- that the item then had
    reason          integer not null,
    category        integer,          -- of the failure; null if there was none
    organization_id text not null,
    code            text,
    error           text,
    reference       text,
    detail          text,             -- exchange, parts, notes
    primary key (organization_id, delivery_id, n, fence)
) without rowid;

-- One row per dead letter, for as long as it is one: made as the item ends, removed as it is retried or purged. Narrow, as
-- the queue is; the record of the death is in delivery_attempts and stays.
create table delivery_dead_letters (
    lane            integer not null,
    died_at         integer not null,
    deadline        integer,
    delivery_id     text not null,
    destination_id  text not null,
    fence           integer not null,  -- of its end
    n               integer not null,
    reason          integer not null,
    organization_id text not null,
    primary key (organization_id, delivery_id, n)
) without rowid;
create index delivery_dead_letters_destination on delivery_dead_letters (organization_id, destination_id, delivery_id, n);

-- What was written at destinations that keep it for a time only: until it is removed, and then the record of that.
create table delivery_written (
    written_at      integer not null,
    removed_at      integer,          -- when nothing is to be done any more
    tried_at        integer,          -- where it could not be removed
    delivery_id     text not null,
    destination_no  integer not null,
    n               integer not null,
    removal         integer not null default 0,
    organization_id text not null,
    problem         text,                -- why it could not be removed
    reference       text not null,
    primary key (organization_id, delivery_id, n)
);
create index delivery_written_due on delivery_written (destination_no, written_at, delivery_id, n) where removed_at is null;

create table delivery_checkpoints (
    delivery_id     text not null,
    n               integer not null,
    organization_id text not null,
    value           text not null,
    primary key (organization_id, delivery_id, n)
) without rowid;

-- Maintenance jobs: whoever leases the row runs the job.
create table delivery_jobs (
    name         text primary key,
    leased_until integer not null,
    ran_at       integer
);

-- The processes that attempt items, so that it can be told that none does.
create table delivery_workers (
    seen_at      integer not null,
    id           text primary key,
    types        text not null
) without rowid;

-- +goose Down
drop table delivery_installation;
drop table delivery_written;
drop table delivery_usage;
drop table delivery_checks;
drop table delivery_security_events;
drop table delivery_workers;
drop table delivery_jobs;
drop table delivery_checkpoints;
drop table delivery_dead_letters;
drop table delivery_attempts;
drop table delivery_leases;
drop table delivery_queue;
drop table delivery_idempotency;
drop table delivery_deliveries;
drop table delivery_payload_chunks;
drop table delivery_payloads;
drop table delivery_minutes;
drop table delivery_health;
drop table delivery_organizations;
drop table delivery_gates;
drop table delivery_destinations;
drop table delivery_sequence;
