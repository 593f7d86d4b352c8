-- The newest audit entries, without their contents.
SELECT at, action, entity, entity_id, actor, sealed
FROM reporting.audit_entries
ORDER BY audit_id DESC
LIMIT 100
