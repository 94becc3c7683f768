-- task_id, token, lease_ms → {'ok'}
local forbidden = not_held(ARGV[1], ARGV[2])
if forbidden then
  return forbidden
end
extend_lease(ARGV[1], tonumber(ARGV[3]))
at_work()
return {'ok'}
