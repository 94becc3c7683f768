-- task_id, token or '' (by hand), run_id, machine, lease_ms → {'ok', token}
local id, token, run_id, machine, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local task = read(id, 'state', 'token', 'run_id', 'refused', 'deadline_ms')
local state = task[1]
if not state then
  return {'unknown'}
end
if state == 'downloading' and task[3] == run_id then
  return {'ok', task[2]}
end
local by_hand = token == ''
if by_hand then
  if state ~= 'pending' and not (state == 'errored' and not task[4]) then
    return refused(id, false)
  end
  if tonumber(task[5]) <= NOW then
    return refused_late(id)
  end
  if state == 'errored' then
    move(id, state, 'pending', {failures = '0', outcome = ''}, 'retry',
      {'text', 'started by hand', 'run_id', run_id})
    state = 'pending'
  end
else
  if task[2] ~= token then
    return refused(id, true)
  end
  if state ~= 'pending' and state ~= 'scheduled' then
    return refused(id, false)
  end
end
-- A claim whose lease ran out while its process started is taken anew.
if state == 'pending' then
  token = digits(grow_token(id))
end
move(id, state, 'downloading', {lease_ms = lease_ms, run_id = run_id, machine = machine,
  code = '', text = ''}, 'started', {'token', token, 'run_id', run_id, 'machine', machine})
return {'ok', token}
