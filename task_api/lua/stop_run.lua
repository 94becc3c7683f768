-- run id → the slot that executes it, or ''; one that begins it later will be told
redis.call('SET', KEY.STOPPING .. ARGV[1], '1', 'PX', KEY.STOPPING_MEMORY_MS)
return redis.call('GET', KEY.EXECUTING .. ARGV[1]) or ''
