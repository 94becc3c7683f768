-- limit, lease_ms → {task_id, token, …}: pending → scheduled, the longest due first
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEY.DUE, '-inf', digits(NOW), 'LIMIT', 0, ARGV[1])) do
  local token = digits(grow_token(id))
  move(id, 'pending', 'scheduled', {lease_ms = tonumber(ARGV[2]), run_id = '', machine = ''},
    'claimed', {'token', token})
  taken[#taken + 1] = id
  taken[#taken + 1] = token
end
-- The doorbell wakes one waiter; whoever leaves something pending wakes the next.
if redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW)) > 0 then
  ring()
end
return taken
