redis.call('DEL', KEY.COUNTERS)
redis.call('HSET', KEY.COUNTERS, 'since', digits(NOW))
return 1
