-- task_id, token, code, text → {'ok'}: downloading or scheduled → pending at once; counts no failure
local id, token, code, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local task = read(id, 'state', 'run_id', 'failed_token')
if task[3] == token then
  return {'ok'}
end
local forbidden = not_held(id, token, LEASED)
if forbidden then
  return forbidden
end
move(id, task[1], 'pending', {code = code, text = text}, 'retry',
  {'token', token, 'run_id', task[2] or '', 'code', code, 'text', text})
redis.call('HSET', KEY.TASK .. id, 'failed_token', token, 'failed_state', 'pending')
return {'ok'}
