-- needs_workers, free_slots
redis.call('HSET', KEY.SENSOR, 'seen_ms', digits(NOW), 'needs_workers', ARGV[1], 'free_slots', ARGV[2])
return 1
