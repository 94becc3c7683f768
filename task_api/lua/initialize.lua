-- → the schema version of this registry, marked on a new one.
redis.call('SETNX', KEY.SCHEMA, KEY.SCHEMA_VERSION)
redis.call('HSETNX', KEY.COUNTERS, 'since', digits(NOW))
return redis.call('GET', KEY.SCHEMA)
