-- task_id, token, path, machine → {'ok'}: downloading → ready, announced in the same step
local id, token, path, machine = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local task = read(id, 'token', 'ready_token', 'path', 'run_id')
-- Its consumer may have judged it since; what was announced was announced.
if task[1] == token and task[2] == token and task[3] == path then
  return {'ok'}
end
local forbidden = not_held(id, token)
if forbidden then
  return forbidden
end
move(id, 'downloading', 'ready',
  {path = path, machine = machine, code = '', text = '', ready_token = token}, 'ready',
  {'token', token, 'run_id', task[4], 'path', path, 'machine', machine})
redis.call('ZADD', KEY.UNMATERIALIZED, digits(NOW), id)
publish(KEY.READY, id)
return {'ok'}
