-- limit, jitter → {'1' if there may be more, new state, task_id, …}
local limit, jitter = tonumber(ARGV[1]), tonumber(ARGV[2])
local moved = {}
local function note(state, id)
  moved[#moved + 1] = state
  moved[#moved + 1] = id
end

local late = redis.call('ZRANGEBYSCORE', KEY.DEADLINES, '-inf', digits(NOW), 'LIMIT', 0, limit)
for _, id in ipairs(late) do
  finish(id, redis.call('HGET', KEY.TASK .. id, 'state'), 'expired', 'deadline_passed',
    'its deadline has passed')
  note('expired', id)
end

-- Leases that ran out while nobody looked, as when Redis was away, could not be renewed either.
local looked = tonumber(redis.call('GET', KEY.REAPER) or '0')
local watched = NOW - looked <= KEY.REAPER_GAP_MS
redis.call('SET', KEY.REAPER, digits(NOW))
local ended = redis.call('ZRANGEBYSCORE', KEY.LEASES, '-inf', digits(NOW), 'LIMIT', 0, limit)
for _, id in ipairs(ended) do
  local task = read(id, 'state', 'token', 'run_id')
  if not watched then
    redis.call('ZADD', KEY.LEASES, digits(NOW + KEY.RUNNING_LEASE_MS), id)
    redis.call('HSET', KEY.TASK .. id, 'lease_until_ms', digits(NOW + KEY.RUNNING_LEASE_MS))
  elseif task[1] == 'scheduled' then
    move(id, 'scheduled', 'pending', {code = 'not_started', text = 'its run did not start in time'},
      'retry', {'token', task[2], 'code', 'not_started', 'text', 'its run did not start in time'})
    note('pending', id)
  else
    note(put_back(id, 'downloading', 'worker_lost', 'its worker stopped without a word', jitter, 0, 0), id)
  end
end
return {(#late == limit or (watched and #ended == limit)) and '1' or '0', unpack(moved)}
