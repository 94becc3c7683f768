-- task_id, token, code, text, transient, retry_after_ms, retry_until_ms, jitter → {'ok', state}
local id, token, code, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local task = read(id, 'state', 'token', 'run_id')
if not task[1] then
  return {'unknown'}
end
if task[2] ~= token then
  return refused(id, true)
end
if not LEASED[task[1]] then
  return refused(id, false)
end
if ARGV[5] == '1' then
  return {'ok', put_back(id, task[1], code, text, tonumber(ARGV[8]), tonumber(ARGV[6]),
    tonumber(ARGV[7]))}
end
move(id, task[1], 'errored', {code = code, text = text}, 'errored',
  {'token', token, 'run_id', task[3] or '', 'code', code, 'text', text})
return {'ok', 'errored'}
