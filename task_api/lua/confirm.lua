-- task_id, token → {'ok'}
return not_held(ARGV[1], ARGV[2]) or {'ok'}
