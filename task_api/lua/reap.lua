-- request id, limit, jitter → {'1' if there may be more, new state, task_id, …}
local request, limit, jitter = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local known = remembered(request)
if known then
  return known
end
local moved = {}
local function note(state, id)
  moved[#moved + 1] = state
  moved[#moved + 1] = id
end

local gap = unwatched()
local late = redis.call('ZRANGEBYSCORE', KEY.DEADLINES, '-inf', digits(NOW), 'LIMIT', 0, limit)
for _, id in ipairs(late) do
  finish(id, redis.call('HGET', KEY.TASK .. id, 'state'), 'expired', 'deadline_passed',
    'its deadline has passed')
  note('expired', id)
end

-- After a gap, a lease that ended, or ends before its holder can be expected to have renewed it, is
-- made whole once.
local ends = digits(NOW + (gap and KEY.RENEWAL_MS or 0))
local ended = redis.call('ZRANGEBYSCORE', KEY.LEASES, '-inf', ends, 'LIMIT', 0, limit)
for _, id in ipairs(ended) do
  local task = read(id, 'state', 'token')
  if gap then
    extend_lease(id, KEY.RUNNING_LEASE_MS)
  elseif task[1] == 'scheduled' then
    move(id, 'scheduled', 'pending', {code = 'not_started', text = 'its run did not start in time'},
      'retry', {'token', task[2], 'code', 'not_started', 'text', 'its run did not start in time'})
    note('pending', id)
  else
    note(put_back(id, 'downloading', 'worker_lost', 'its worker stopped without a word',
      jitter, 0, 0), id)
  end
end
if not gap or #ended < limit then
  redis.call('SET', KEY.REAPER, digits(NOW))
end

local answer = {(#late == limit or #ended == limit) and '1' or '0', unpack(moved)}
return #moved > 0 and remember(request, answer) or answer
