-- The rows of document and user as every driver must see them, in one JSON object.
SELECT json_build_object(
    'documents', (SELECT json_agg(json_build_object(
        'id', id, 'owner_id', owner_id, 'title', title, 'kind', kind, 'kinds', kinds, 'state', state,
        'size', json_build_array((size).width, (size).height, (size).state),
        'pages', json_build_array(lower(pages), upper(pages)), 'price', price::text, 'ratio', ratio, 'meta', meta,
        'digest', encode(digest, 'hex'), 'uid', uid, 'day', day,
        'created_at', (extract(epoch FROM created_at) * 1000)::bigint, 'note', note) ORDER BY id) FROM documents),
    'versions', (SELECT json_agg(json_build_object(
        'document_id', document_id, 'version', version, 'state', state, 'body', body) ORDER BY document_id, version) FROM document_versions),
    'users', (SELECT json_agg(json_build_object(
        'id', id, 'name', name, 'email', email, 'role', role, 'joined', (extract(epoch FROM joined) * 1000)::bigint,
        'settings', settings, 'score', score::text, 'groups', groups, 'group_id', group_id) ORDER BY id) FROM users));
