-- task_id → {'ok'}: errored or failed → pending
local id = ARGV[1]
local task = read(id, 'state', 'refused', 'deadline_ms')
if not task[1] then
  return {'unknown'}
end
if not (task[1] == 'errored' or task[1] == 'failed') or task[2] then
  return refused(id, false)
end
if tonumber(task[3]) <= NOW then
  local reply = refused(id, false)
  reply[5], reply[6] = 'deadline_passed', 'its deadline has passed'
  return reply
end
move(id, task[1], 'pending', {failures = '0', code = '', text = '', outcome = ''}, 'retry',
  {'text', 'on request'})
return {'ok'}
