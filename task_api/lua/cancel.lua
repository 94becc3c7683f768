-- task_id, code, text → {'ok'}
local id = ARGV[1]
local state = redis.call('HGET', KEY.TASK .. id, 'state')
if not state or redis.call('HEXISTS', KEY.TASK .. id, 'refused') == 1 then
  redis.call('SET', KEY.CANCELED_AHEAD .. id, '1', 'PX', KEY.CANCELED_AHEAD_MS)
  return {'unknown'}
end
if state == 'canceled' then
  return {'ok'}
end
if not LIVE[state] then
  return refused(id, false)
end
finish(id, state, 'canceled', ARGV[2], ARGV[3])
return {'ok'}
