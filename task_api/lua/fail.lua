-- task_id, token, code, text, transient, retry_after_ms, retry_until_ms, jitter → {'ok', state}
local id, token, code, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local task = read(id, 'state', 'run_id', 'failed_token', 'failed_state')
-- No later attempt has this token, whatever became of the task since.
if task[3] == token then
  return {'ok', task[4]}
end
local forbidden = not_held(id, token, LEASED)
if forbidden then
  return forbidden
end
local state = 'errored'
if ARGV[5] == '1' then
  state = put_back(id, task[1], code, text, tonumber(ARGV[8]), tonumber(ARGV[6]), tonumber(ARGV[7]))
else
  move(id, task[1], state, {code = code, text = text}, state,
    {'token', token, 'run_id', task[2] or '', 'code', code, 'text', text})
end
redis.call('HSET', KEY.TASK .. id, 'failed_token', token, 'failed_state', state)
return {'ok', state}
