-- What every script of the registry shares. `KEY` (names of keys, numbers) stands before this
-- chunk. Redis runs a script whole, so nothing here is ever half-done. A script may be sent twice
-- when a connection breaks, and must then change nothing more and answer the same: it finds its own
-- success in the task where the token says whose it was, else under the request's id (`remembered`).

local ALLOWED = {
  pending = {new = true, scheduled = true, downloading = true, errored = true, failed = true},
  scheduled = {pending = true},
  downloading = {pending = true, scheduled = true},
  ready = {downloading = true},
  succeeded = {ready = true},
  failed = {ready = true},
  errored = {new = true, pending = true, scheduled = true, downloading = true, ready = true},
  canceled = {new = true, pending = true, scheduled = true, downloading = true, ready = true},
  expired = {pending = true, scheduled = true, downloading = true, ready = true},
}
local LIVE = {pending = true, scheduled = true, downloading = true, ready = true}
local LEASED = {scheduled = true, downloading = true}
local HELD = {downloading = true}
local ANNOUNCED = {ready = true, succeeded = true, failed = true}
local COUNTED = {succeeded = true, failed = true, errored = true, canceled = true}

local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Lua's own conversion would write a time as 1.7e+12.
local function digits(number)
  return string.format('%.0f', number)
end

local function read(id, ...)
  return redis.call('HMGET', KEY.TASK .. id, ...)
end

-- The answer that this request got before, or nil.
local function remembered(request)
  local answer = redis.call('GET', KEY.ANSWER .. request)
  return answer and cmsgpack.unpack(answer) or nil
end

local function remember(request, answer)
  redis.call('SET', KEY.ANSWER .. request, cmsgpack.pack(answer), 'PX', KEY.ANSWER_MEMORY_MS)
  return answer
end

local function unwatched_ms()
  return NOW - tonumber(redis.call('GET', KEY.REAPER) or '0')
end

-- Whether Redis was away or frozen for so long that leases may have run out for that reason alone.
local function unwatched()
  return unwatched_ms() > KEY.REAPER_GAP_MS
end

-- Redis is at work, so whoever holds a lease can renew it. After a gap only the reaper may say so,
-- when it has made up for the gap. A mark that was just made is not made again.
local function at_work()
  local ago_ms = unwatched_ms()
  if ago_ms >= KEY.REAPER_MARK_MS and ago_ms <= KEY.REAPER_GAP_MS then
    redis.call('SET', KEY.REAPER, digits(NOW))
  end
end

-- Appends to the task's timeline; `fields` is a flat list of names and values.
local function emit(id, kind, fields)
  local entry = {'kind', kind}
  for i = 1, #(fields or {}), 2 do
    if fields[i + 1] and fields[i + 1] ~= '' then
      entry[#entry + 1] = fields[i]
      entry[#entry + 1] = fields[i + 1]
    end
  end
  redis.call('XADD', KEY.EVENTS .. id, '*', unpack(entry))
  redis.call('XADD', KEY.RECENT_EVENTS, 'MAXLEN', '~', KEY.RECENT_EVENTS_KEPT, '*',
    'task_id', id, unpack(entry))
end

-- How many members of a sorted set of leases live.
local function living(leases)
  return redis.call('ZCOUNT', leases, '(' .. digits(NOW), '+inf')
end

-- Wakes who will claim what is due: the workers that linger, and for what is beyond them the sensor.
local function ring()
  local due = redis.call('ZCOUNT', KEY.DUE, '-inf', digits(NOW))
  local lingering = living(KEY.LINGERING)
  if redis.call('LLEN', KEY.WORKER_BELL) < math.min(due, lingering) then
    redis.call('RPUSH', KEY.WORKER_BELL, '1')
  end
  -- Nothing due: whoever waits has to look anew how long it may.
  if (due > lingering or due == 0) and redis.call('LLEN', KEY.DOORBELL) == 0 then
    redis.call('RPUSH', KEY.DOORBELL, '1')
  end
end

local function count(name)
  redis.call('HSETNX', KEY.COUNTERS, 'since', digits(NOW))
  redis.call('HINCRBY', KEY.COUNTERS, name, 1)
end

-- One entry for consumers, with what they need to find and judge the task.
local function publish(stream, id)
  local task = read(id, 'path', 'machine', 'deadline_ms', 'type', 'project_name', 'focus', 'metadata')
  redis.call('XADD', stream, '*', 'task_id', id, 'path', task[1] or '', 'machine', task[2] or '',
    'deadline_ms', task[3], 'type', task[4], 'project_name', task[5], 'focus', task[6],
    'metadata', task[7])
end

-- Lists the folder of a task for removal, or takes it off that list. A live task is published over
-- what stands there. A cancelled one is wanted by nobody. One that ended without having been
-- announced may have a folder none the less: its attempt died between the renaming and `ready`. Of
-- the announced ones, people and retention take care.
local function judge_folder(id, to)
  if LIVE[to] then
    redis.call('SREM', KEY.REMOVALS, id)
    return
  end
  local task = read(id, 'path', 'machine')
  local announced, begun = (task[1] or '') ~= '', (task[2] or '') ~= ''
  if to == 'canceled' and announced or not announced and begun then
    redis.call('SADD', KEY.REMOVALS, id)
  end
end

-- The one place where a task changes its state. `set` holds further fields of the task ('' clears
-- one); `event` and `about` are the entry in its timeline. `set.lease_ms` is the length of the new
-- lease, `set.not_before_ms` the time from which a pending task may be claimed.
local function move(id, from, to, set, event, about)
  if not (ALLOWED[to] and ALLOWED[to][from]) then
    error('no move from ' .. from .. ' to ' .. to)
  end
  set = set or {}
  local task = KEY.TASK .. id
  local known = read(id, 'sequence', 'deadline_ms')
  -- What is new is in none of the sets.
  local new = from == 'new'
  if not new then
    redis.call('ZREM', KEY.INDEX .. from, id)
  end
  redis.call('ZADD', KEY.INDEX .. to, known[1], id)

  local until_ms = ''
  if LEASED[to] then
    until_ms = digits(NOW + set.lease_ms)
    redis.call('ZADD', KEY.LEASES, until_ms, id)
  elseif not new then
    redis.call('ZREM', KEY.LEASES, id)
  end
  set.lease_ms = nil
  set.lease_until_ms = until_ms

  if to == 'pending' then
    local due = set.not_before_ms or digits(NOW)
    redis.call('ZADD', KEY.DUE, due, id)
    ring()
  else
    if not new then
      redis.call('ZREM', KEY.DUE, id)
    end
    set.not_before_ms = ''
  end

  if LIVE[to] then
    redis.call('ZADD', KEY.DEADLINES, known[2], id)
  elseif not new then
    redis.call('ZREM', KEY.DEADLINES, id)
  end

  local fields = {'state', to, 'updated_ms', digits(NOW)}
  for name, value in pairs(set) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  redis.call('HSET', task, unpack(fields))
  if to ~= 'ready' and from == 'ready' then
    redis.call('SREM', KEY.WAITING, id)
    redis.call('HDEL', task, 'waiting')
  end
  if not new then
    if not ANNOUNCED[to] then
      redis.call('ZREM', KEY.UNMATERIALIZED, id)
    end
    judge_folder(id, to)
  end
  if COUNTED[to] then
    count(to)
  end
  emit(id, event, about)
  at_work()
end

local function extend_lease(id, lease_ms)
  local until_ms = digits(NOW + lease_ms)
  redis.call('ZADD', KEY.LEASES, until_ms, id)
  redis.call('HSET', KEY.TASK .. id, 'lease_until_ms', until_ms)
end

local function grow_token(id)
  return redis.call('HINCRBY', KEY.TASK .. id, 'token', 1)
end

-- Ends a task that a person or the clock ends, whatever it was doing.
local function finish(id, from, to, code, text)
  local token = grow_token(id)
  if to == 'expired' then
    count(from == 'ready' and 'failed' or 'errored')
  end
  move(id, from, to, {code = code, text = text}, to,
    {'from', from, 'token', digits(token), 'code', code, 'text', text})
  if to == 'canceled' then
    publish(KEY.CANCELED, id)
  end
end

local function back_off(failures, jitter)
  return math.min(KEY.LONGEST_BACKOFF_MS, KEY.FIRST_BACKOFF_MS * 2 ^ (failures - 1)) * jitter
end

-- Ends an attempt that failed for a reason that may pass: pending again after a pause, or errored
-- when no attempt is left. Counts the failure.
local function put_back(id, from, code, text, jitter, at_least_ms, retry_until_ms)
  local task = read(id, 'failures', 'deadline_ms', 'run_id', 'token')
  local failures = tonumber(task[1]) + 1
  local not_before = NOW + math.floor(math.max(back_off(failures, jitter), at_least_ms))
  local about = {'token', task[4], 'run_id', task[3] or '', 'failures', digits(failures),
    'code', code, 'text', text}
  local ends
  if failures >= KEY.MAX_FAILURES then
    ends = digits(failures) .. ' attempts have failed'
  elseif not_before >= tonumber(task[2]) then
    ends = 'its deadline comes before another try'
  elseif retry_until_ms > 0 and not_before >= retry_until_ms then
    ends = 'its URLs expire before another try; post it with fresh ones, then retry'
  end
  if ends then
    text = text .. '; ' .. ends
    about[#about] = text
    move(id, from, 'errored', {failures = digits(failures), code = code, text = text},
      'errored', about)
    return 'errored'
  end
  about[#about + 1] = 'not_before_ms'
  about[#about + 1] = digits(not_before)
  move(id, from, 'pending', {failures = digits(failures), code = code, text = text,
    not_before_ms = digits(not_before)}, 'retry', about)
  return 'pending'
end

local function refused(id, stale)
  local task = read(id, 'state', 'token', 'run_id', 'code', 'text')
  return {'refused', task[1], task[2], task[3] or '', task[4] or '', task[5] or '',
    stale and '1' or '0'}
end

-- The reply that refuses a task to be prepared which could not be ready in time.
local function refused_late(id)
  local reply = refused(id, false)
  reply[5], reply[6] = 'deadline_passed', 'its deadline has passed'
  return reply
end

-- The reply that forbids an attempt to go on, or nil when it holds its task: with this token, and
-- in one of these states (downloading, if none are given).
local function not_held(id, token, states)
  local task = read(id, 'state', 'token')
  if not task[1] then
    return {'unknown'}
  end
  if task[2] ~= token then
    return refused(id, true)
  end
  if not (states or HELD)[task[1]] then
    return refused(id, false)
  end
  return nil
end

-- pending → scheduled, the longest due first; appends id and token of each to `taken`.
local function take_due(taken, limit, lease_ms)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEY.DUE, '-inf', digits(NOW), 'LIMIT', 0, limit)) do
    local token = digits(grow_token(id))
    -- The machine of the attempt before stays known: its folder may be there.
    move(id, 'pending', 'scheduled', {lease_ms = lease_ms, run_id = ''}, 'claimed', {'token', token})
    taken[#taken + 1] = id
    taken[#taken + 1] = token
  end
end

-- What remains of a claim that was answered before: of tasks that have moved on nothing is left.
local function still_claimed(known)
  local left = {}
  for i = 1, #known, 2 do
    local task = read(known[i], 'state', 'token')
    if task[1] == 'scheduled' and task[2] == known[i + 1] then
      left[#left + 1] = known[i]
      left[#left + 1] = known[i + 1]
    end
  end
  return left
end
