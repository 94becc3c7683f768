-- task_id, sarif_id, broadcast → 1 if it is new
local key = KEY.SARIF .. ARGV[1]
local new = redis.call('HSETNX', key, ARGV[2], ARGV[3])
if redis.call('EXISTS', KEY.TASK .. ARGV[1]) == 1 then
  if new == 1 then
    emit(ARGV[1], 'sarif', {'sarif_id', ARGV[2]})
  end
else
  -- The task may still come; if it does, its record keeps this.
  redis.call('PEXPIRE', key, KEY.CANCELED_AHEAD_MS)
end
return new
