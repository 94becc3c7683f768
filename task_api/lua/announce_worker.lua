-- worker id, lease_ms
redis.call('ZREMRANGEBYSCORE', KEY.WORKERS, '-inf', digits(NOW))
redis.call('ZADD', KEY.WORKERS, digits(NOW + tonumber(ARGV[2])), ARGV[1])
at_work()
return 1
