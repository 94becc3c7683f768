-- request id, limit, lease_ms → {task_id, token, …}: pending → scheduled, the longest due first
local request, limit, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local taken = {}
local known = remembered(request)
if known then
  for i = 1, #known, 2 do
    local task = read(known[i], 'state', 'token')
    if task[1] == 'scheduled' and task[2] == known[i + 1] then
      taken[#taken + 1] = known[i]
      taken[#taken + 1] = known[i + 1]
    end
  end
  return taken
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEY.DUE, '-inf', digits(NOW), 'LIMIT', 0, limit)) do
  local token = digits(grow_token(id))
  -- The machine of the attempt before stays known: its folder may be there.
  move(id, 'pending', 'scheduled', {lease_ms = lease_ms, run_id = ''}, 'claimed', {'token', token})
  taken[#taken + 1] = id
  taken[#taken + 1] = token
end
-- The doorbell wakes one waiter; whoever leaves something pending wakes the next.
if redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW)) > 0 then
  ring()
end
-- Also when nothing was due: what was sent first may be carried out last, for nobody.
return remember(request, taken)
