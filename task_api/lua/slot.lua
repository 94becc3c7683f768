-- slot, lease_ms, occupied ('1' or '0'), run id or '' → '1' if somebody asked for the end of this run
local slot, lease_ms, run_id = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local ends = digits(NOW + lease_ms)
for _, slots in ipairs({KEY.WORKERS, KEY.OCCUPIED, KEY.LINGERING}) do
  redis.call('ZREMRANGEBYSCORE', slots, '-inf', digits(NOW))
end
redis.call('ZADD', KEY.WORKERS, ends, slot)
if ARGV[3] == '1' then
  redis.call('ZADD', KEY.OCCUPIED, ends, slot)
else
  redis.call('ZREM', KEY.OCCUPIED, slot)
end
at_work()
if run_id == '' then
  return '0'
end
-- A run that was stopped before it began must not begin.
local stopping = redis.call('EXISTS', KEY.STOPPING .. run_id)
if stopping == 0 or redis.call('EXISTS', KEY.EXECUTING .. run_id) == 1 then
  redis.call('SET', KEY.EXECUTING .. run_id, slot, 'PX', lease_ms)
end
return tostring(stopping)
