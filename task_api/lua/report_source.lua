-- task_id, token, source type, state, report (JSON), digest or '', bytes → {'ok'}
local id, token, source = ARGV[1], ARGV[2], ARGV[3]
local forbidden = not_held(id, token)
if forbidden then
  return forbidden
end
local said = token .. ' ' .. ARGV[5]
if redis.call('HGET', KEY.TASK .. id, 'said:' .. source) ~= said then
  redis.call('HSET', KEY.TASK .. id, 'report:' .. source, ARGV[5], 'said:' .. source, said)
  emit(id, ARGV[4], {'token', token, 'source', source, 'sha256', ARGV[6], 'bytes', ARGV[7]})
end
return {'ok'}
