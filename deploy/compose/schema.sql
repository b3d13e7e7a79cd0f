-- Three repositories to try crossfade with; the same on both databases.
CREATE ROLE app LOGIN PASSWORD 'secret';
CREATE TABLE users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text NOT NULL);
CREATE TABLE organizations (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text NOT NULL);
CREATE TABLE documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), title text NOT NULL, body text NOT NULL DEFAULT '');
INSERT INTO documents (id, title) SELECT md5(n::text)::uuid, 'document ' || n FROM generate_series(1, 1000) n;
GRANT SELECT, INSERT, UPDATE, DELETE ON users, organizations, documents TO app;
