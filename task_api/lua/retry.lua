-- task_id, request id → {'ok'}: errored or failed → pending
local id, request = ARGV[1], ARGV[2]
local known = remembered(request)
if known then
  return known
end
local task = read(id, 'state', 'refused', 'deadline_ms')
if not task[1] then
  return {'unknown'}
end
if not (task[1] == 'errored' or task[1] == 'failed') or task[2] then
  return refused(id, false)
end
if tonumber(task[3]) <= NOW then
  return refused_late(id)
end
move(id, task[1], 'pending', {failures = '0', code = '', text = '', outcome = ''}, 'retry',
  {'text', 'on request'})
return remember(request, {'ok'})
