-- request id, task_id, sarif_id, broadcast → 1 if it is new
local request, id, sarif_id = ARGV[1], ARGV[2], ARGV[3]
local known = remembered(request)
if known then
  return known
end
local new = redis.call('HSETNX', KEY.SARIF .. id, sarif_id, ARGV[4])
if redis.call('EXISTS', KEY.TASK .. id) == 1 then
  if new == 1 then
    emit(id, 'sarif', {'sarif_id', sarif_id})
  end
else
  -- The task may still come; if it does, its record keeps this.
  redis.call('PEXPIRE', KEY.SARIF .. id, KEY.CANCELED_AHEAD_MS)
end
return new == 1 and remember(request, new) or new
