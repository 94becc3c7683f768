-- request id, limit, age_ms → {task_id, …}: forgets tasks that ended so long ago
-- Whatever needs a live task finds none from here on. What is left outside of Redis is listed in the
-- same step: its folders here, and in Dagster everything whose task is unknown.
local request, limit, age_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local known = remembered(request)
if known then
  return known
end

local MOST_EVENTS = 1000

-- Every machine on which an attempt began may have a folder, or a lock, of it.
local function list_folders(id, machine)
  local machines = {}
  if machine and machine ~= '' then
    machines[machine] = true
  end
  for _, event in ipairs(redis.call('XREVRANGE', KEY.EVENTS .. id, '+', '-', 'COUNT', MOST_EVENTS)) do
    local fields = event[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'machine' then
        machines[fields[i + 1]] = true
      end
    end
  end
  for name in pairs(machines) do
    redis.call('ZADD', KEY.RETIRED_FOLDERS .. name, digits(NOW), id)
    redis.call('PEXPIRE', KEY.RETIRED_FOLDERS .. name, KEY.RETIRED_FOLDERS_MS)
  end
end

local function retire(id, state, token, machine)
  list_folders(id, machine)
  -- A record that has lost its token keeps none of the others.
  if (tonumber(token) or 0) > tonumber(redis.call('GET', KEY.TOKEN_FLOOR) or '0') then
    redis.call('SET', KEY.TOKEN_FLOOR, token)
  end
  redis.call('XADD', KEY.RECENT_EVENTS, 'MAXLEN', '~', KEY.RECENT_EVENTS_KEPT, '*',
    'task_id', id, 'kind', 'retired', 'from', state)
  redis.call('ZREM', KEY.INDEX .. state, id)
  redis.call('ZREM', KEY.UNMATERIALIZED, id)
  redis.call('SREM', KEY.REMOVALS, id)
  redis.call('UNLINK', KEY.TASK .. id, KEY.EVENTS .. id, KEY.SARIF .. id)
end

local retired = {}
local due = redis.call('ZRANGEBYSCORE', KEY.ENDED, '-inf', digits(NOW - age_ms), 'LIMIT', 0, limit)
for _, id in ipairs(due) do
  -- The first write takes no memory, so a full Redis refuses none of those after it.
  redis.call('ZREM', KEY.ENDED, id)
  local task = read(id, 'state', 'token', 'machine')
  if task[1] and not LIVE[task[1]] then
    retire(id, task[1], task[2], task[3])
    retired[#retired + 1] = id
  end
end
return #retired > 0 and remember(request, retired) or retired
