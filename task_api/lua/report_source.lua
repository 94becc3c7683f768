-- task_id, token, source type, state, report (JSON), digest or '', bytes → {'ok'}
local id = ARGV[1]
local forbidden = not_held(id, ARGV[2])
if forbidden then
  return forbidden
end
redis.call('HSET', KEY.TASK .. id, 'report:' .. ARGV[3], ARGV[5])
emit(id, ARGV[4], {'token', ARGV[2], 'source', ARGV[3], 'sha256', ARGV[6], 'bytes', ARGV[7]})
return {'ok'}
