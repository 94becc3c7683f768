-- request id, limit, lease_ms → {task_id, token, …}: pending → scheduled, the longest due first
local request, limit, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = remembered(request)
if known then
  return still_claimed(known)
end
local taken = {}
take_due(taken, limit, lease_ms)
-- The doorbell wakes one waiter; whoever leaves something pending wakes the next.
if redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW)) > 0 then
  ring()
end
-- Also when nothing was due: what was sent first may be carried out last, for nobody.
return remember(request, taken)
