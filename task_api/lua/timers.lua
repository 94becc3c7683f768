-- → milliseconds until a task falls due, a lease or a deadline ends; 0 if one has; -1 if none will.
at_work()
local first = -1
for _, timers in ipairs({KEY.DUE, KEY.LEASES, KEY.DEADLINES}) do
  local entry = redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')
  if entry[2] then
    local left = math.max(0, tonumber(entry[2]) - NOW)
    first = first < 0 and left or math.min(first, left)
  end
end
return digits(first)
