-- The application of the demo: three repositories. Foreign keys stay inside a repository.
CREATE TYPE document_status AS ENUM ('draft', 'review', 'published', 'archived');
CREATE TABLE documents (
    id         bigint PRIMARY KEY,
    owner_id   bigint NOT NULL,
    title      text NOT NULL,
    status     document_status NOT NULL,
    price      numeric(10, 2) NOT NULL,
    meta       jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX documents_owner ON documents (owner_id, id);
CREATE TABLE document_versions (
    document_id bigint NOT NULL REFERENCES documents,
    version     integer NOT NULL,
    body        text NOT NULL,
    PRIMARY KEY (document_id, version)
);
-- Lets the demo's clients see which server answered.
CREATE VIEW document_served AS SELECT *, current_setting('cluster_name') AS served_by FROM documents;

CREATE TABLE users (
    id         bigint PRIMARY KEY,
    email      text NOT NULL UNIQUE,
    logins     bigint NOT NULL DEFAULT 0,
    settings   jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE user_sessions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    agent      text,
    started_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE organizations (
    id   bigint PRIMARY KEY,
    name text NOT NULL UNIQUE,
    plan text NOT NULL CHECK (plan IN ('free', 'team', 'enterprise'))
);
CREATE TABLE organization_members (
    organization_id bigint NOT NULL REFERENCES organizations ON DELETE CASCADE,
    user_id         bigint NOT NULL,
    seen            bigint NOT NULL DEFAULT 0,
    joined_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, user_id)
);

-- The same rows on both servers: nothing copies writes in this demo, so its documents never change.
INSERT INTO documents
SELECT n, n % 100, 'Document ' || n, (enum_range(NULL::document_status))[1 + n % 4], n % 1000 + (n % 100) / 100.0,
       jsonb_build_object('n', n, 'lang', 'en'), timestamptz '2024-01-01 00:00:00+00' + n * interval '1 minute'
FROM generate_series(1, 2000) n;
INSERT INTO document_versions
SELECT n, v, repeat('text ' || v || ' ', 20) FROM generate_series(1, 2000) n, generate_series(1, 3) v;
INSERT INTO users (id, email) SELECT n, 'user' || n || '@example.org' FROM generate_series(1, 500) n;
INSERT INTO organizations SELECT n, 'Organization ' || n, (ARRAY['free', 'team', 'enterprise'])[1 + n % 3] FROM generate_series(1, 50) n;

CREATE ROLE app LOGIN PASSWORD 'app-secret';
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app;
CREATE EXTENSION pg_stat_statements;
ANALYZE;
