-- task_id, outcome, reason → {'ok'}: what a consumer made of a ready task
local id, outcome, text = ARGV[1], ARGV[2], ARGV[3]
local task = read(id, 'state', 'outcome', 'token')
if not task[1] then
  return {'unknown'}
end
if task[1] == outcome and task[2] == outcome then
  return {'ok'}
end
if task[1] ~= 'ready' then
  return refused(id, false)
end
if outcome == 'waiting' then
  if redis.call('SADD', KEY.WAITING, id) == 1 then
    redis.call('HSET', KEY.TASK .. id, 'waiting', '1')
    emit(id, 'waiting', {'text', text})
  end
  return {'ok'}
end
move(id, 'ready', outcome, {outcome = outcome, code = text ~= '' and 'outcome' or '', text = text},
  outcome, {'token', task[3], 'code', 'outcome', 'text', text})
return {'ok'}
