-- task_id, token, lease_ms → {'ok'}
local forbidden = not_held(ARGV[1], ARGV[2])
if forbidden then
  return forbidden
end
local until_ms = digits(NOW + tonumber(ARGV[3]))
redis.call('ZADD', KEY.LEASES, until_ms, ARGV[1])
redis.call('HSET', KEY.TASK .. ARGV[1], 'lease_until_ms', until_ms)
return {'ok'}
