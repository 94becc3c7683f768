-- request id, slot, lease_ms, linger_ms or 0 → {'step_back'}, {'claimed', task_id, token} or {'none'}
-- A slot that has finished a run takes the next task. It steps back while a run waits for a worker.
-- With nothing due it lingers, or leaves; in the same step, so that no task can slip in between.
local request, slot, lease_ms, linger_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local known = remembered(request)
if known then
  local left = still_claimed(known)
  return #left > 0 and {'claimed', unpack(left)} or {'none'}
end
at_work()
redis.call('ZREM', KEY.LINGERING, slot)
if redis.call('LLEN', KEY.RUN_QUEUE) > 0 then
  if redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW)) > 0 then
    ring()
  end
  return {'step_back'}
end
local taken = {}
take_due(taken, 1, lease_ms)
if #taken > 0 then
  remember(request, taken)
  return {'claimed', unpack(taken)}
end
if linger_ms > 0 then
  redis.call('ZADD', KEY.LINGERING, digits(NOW + linger_ms), slot)
end
return {'none'}
